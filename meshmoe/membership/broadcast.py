"""News waiting to be spread, each piece a limited number of times.

SWIM, section 4.1, and memberlist's ``queue.go``: news rides on messages that are sent anyway; each node sends a piece a
number of times logarithmic in the mesh's size, the least sent first, and a newer piece about the same member takes the
older one's place. With the least sent first, fresh news is never starved by old.
"""

from __future__ import annotations

from meshmoe.core.ids import NodeId
from meshmoe.membership.messages import UPDATES_MAX, MemberUpdate, update_bytes


class _Item:
    __slots__ = ("order", "sent", "size", "update")

    def __init__(self, update: MemberUpdate, order: int) -> None:
        self.update = update
        self.size = update_bytes(update)
        self.sent = 0
        self.order = order


class BroadcastQueue:
    """One piece of news a member, with a count of its sendings."""

    __slots__ = ("_items", "_order")

    def __init__(self) -> None:
        self._items: dict[NodeId, _Item] = {}
        self._order = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, update: MemberUpdate) -> None:
        """Queue news, replacing what was queued about the same member."""
        self._order += 1
        node = NodeId(update.node)
        self._items[node] = _Item(update, self._order)

    def discard(self, node: NodeId) -> None:
        """Drop what is queued about a member."""
        self._items.pop(node, None)

    def clear(self) -> None:
        """Drop everything."""
        self._items.clear()

    def take(self, budget_bytes: int, limit: int, *, first: MemberUpdate | None = None) -> list[MemberUpdate]:
        """Choose news for one message and count it as sent.

        Args:
            budget_bytes: Of all that is returned; ``first`` is included whatever its size.
            limit: Sendings after which a piece is done with.
            first: A piece that must go along and is not counted (the accusation of the very peer that is written to).
        """
        chosen: list[MemberUpdate] = []
        if first is not None:
            chosen.append(first)
            budget_bytes -= update_bytes(first)
        if not self._items:
            return chosen
        # Least sent first; among equals the newest, which fewest others have.
        for item in sorted(self._items.values(), key=lambda item: (item.sent, -item.order)):
            if len(chosen) == UPDATES_MAX:
                break
            if item.size > budget_bytes or (first is not None and item.update.node == first.node):
                continue
            chosen.append(item.update)
            budget_bytes -= item.size
            item.sent += 1
            if item.sent >= limit:
                del self._items[NodeId(item.update.node)]
        return chosen
