"""One owner's state as one node holds it, and the merge.

Theory. Only the owner writes; each write gets the owner's next version. Of two entries of one key the one with the
higher ``(generation, version)`` holds. That is a maximum over a total order, so merging is commutative, associative
and idempotent: replicas that received the same entries, in whatever order and however often, are equal (invariant
S5).

To repair losses cheaply, a replica also knows how much of the state it surely has (scuttlebutt, van Renesse et al.
2008): *upto* is a version such that every entry that holds and has a version up to it is here. Deltas with ``after <=
upto`` extend it; others leave a gap: their entries are kept, but *upto* stays, so that the gap is asked for.

Removed keys leave tombstones, else an old replica would bring them back. The owner collects old tombstones and moves
its *floor* up to the last one collected (chitchat's ``last_gc_version``). Whoever has not seen everything up to a
floor might hold keys whose tombstones no longer exist anywhere, and must start from nothing:

- F1. A delta with a floor above our *upto* (and above our floor) is taken only if it starts at 0; then everything at or
  under that floor is dropped first.
- F2. While *upto* is below the floor (such a restart came in pieces), deltas of senders with a lower floor are ignored,
  since they may still carry what was removed. (chitchat accepts them.)
- F3. A replica with *upto* below its floor passes nothing on.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator

from meshmoe.core.ids import NodeId
from meshmoe.gossip.messages import ENTRIES_MAX, Entry, NodeDelta, NodeDigest, delta_overhead_bytes, entry_bytes


def newer(ours: Entry | None, theirs: Entry) -> bool:
    """Whether ``theirs`` holds over ``ours`` within one generation.

    At equal versions, which an owner never writes with different values, the removal and then the greater value wins: a
    corrupt entry may be wrong, but not different from node to node.
    """
    if ours is None:
        return True
    return (theirs.version, theirs.value is None, theirs.value or b"") > (
        ours.version,
        ours.value is None,
        ours.value or b"",
    )


class Replica:
    """See the module's text. ``keys_max`` and ``bytes_max`` bound what a hostile owner can make this node keep."""

    __slots__ = ("_by_version", "_bytes", "_bytes_max", "_keys_max", "entries", "floor", "generation", "node", "upto")

    def __init__(self, node: NodeId, generation: int, *, keys_max: int, bytes_max: int) -> None:
        self.node = node
        self.generation = generation
        self.upto = 0
        self.floor = 0
        self.entries: dict[str, Entry] = {}
        self._by_version: list[tuple[int, str]] = []
        self._bytes = 0
        self._keys_max = keys_max
        self._bytes_max = bytes_max

    @property
    def complete(self) -> bool:
        """Whether this replica may be passed on (rule F3)."""
        return self.upto >= self.floor

    def digest(self) -> NodeDigest:
        """How much is here."""
        return NodeDigest(self.node, self.generation, self.upto, self.floor)

    def values(self) -> Iterator[tuple[str, bytes]]:
        """Keys that exist, with their values."""
        return ((key, entry.value) for key, entry in self.entries.items() if entry.value is not None)

    def start_life(self, generation: int) -> set[str]:
        """Drop everything for a later generation; returns the keys dropped."""
        dropped = set(self.entries)
        self.generation = generation
        self.upto = self.floor = self._bytes = 0
        self.entries.clear()
        self._by_version.clear()
        return dropped

    def absorb(self, delta: NodeDelta) -> tuple[set[str], bool]:
        """Merge a delta.

        Returns:
            The keys whose value changed, and whether a gap remains, so that the owner's state should be asked for.
        """
        changed: set[str] = set()
        if delta.generation < self.generation:
            return changed, False
        if delta.generation > self.generation:
            changed = self.start_life(delta.generation)
        if delta.floor < self.floor and not self.complete:
            return changed, False  # F2
        restarts = delta.floor > self.floor and delta.floor > self.upto
        if restarts and delta.after == 0:  # F1
            changed |= self._drop_under(delta.floor)
            self.upto, self.floor = 0, delta.floor
        gap = delta.after > self.upto or (restarts and delta.after > 0)
        for entry in delta.entries:
            if entry.version > self.upto and self._put(entry):
                changed.add(entry.key)
        if not gap:
            self.upto = max(self.upto, delta.upto)
            self.raise_floor(delta.floor)
        return changed, gap

    def write(self, key: str, value: bytes | None) -> None:
        """The owner's own write: the next version of its state."""
        self.upto += 1
        self._put(Entry(key, self.upto, value))

    def raise_floor(self, floor: int) -> None:
        """Collect the tombstones up to ``floor``."""
        if floor <= self.floor:
            return
        self.floor = floor
        end = bisect_right(self._by_version, floor, key=lambda item: item[0])
        for version, key in self._by_version[:end]:
            entry = self.entries.get(key)
            if entry is not None and entry.version == version and entry.value is None:
                self._remove(key)

    def after(self, version: int) -> Iterator[Entry]:
        """Entries with a version above ``version`` that are surely complete, ascending."""
        start = bisect_right(self._by_version, version, key=lambda item: item[0])
        for place in range(start, len(self._by_version)):
            found, key = self._by_version[place]
            if found > self.upto:
                return
            yield self.entries[key]

    def delta(self, after: int, budget_bytes: int) -> tuple[NodeDelta, int, bool]:
        """A delta from ``after`` with at most ``budget_bytes`` of entries, but one entry at least.

        Returns:
            The delta, its size in bytes (an upper estimate), and whether something had to be left out.
        """
        chosen: list[Entry] = []
        upto, used, cut = self.upto, delta_overhead_bytes(self.node), False
        for entry in self.after(after):
            size = entry_bytes(entry)
            if chosen and (used + size > budget_bytes or len(chosen) == ENTRIES_MAX):
                upto, cut = chosen[-1].version, True
                break
            chosen.append(entry)
            used += size
        return NodeDelta(self.node, self.generation, self.floor, after, upto, chosen), used, cut

    def start_for(self, upto: int, floor: int) -> int:
        """From which version a delta must start for a replica with this ``upto`` and ``floor`` (rule F1)."""
        return 0 if self.floor > upto and self.floor > floor else upto

    def _put(self, entry: Entry) -> bool:
        ours = self.entries.get(entry.key)
        if not newer(ours, entry):
            return False
        grown = len(entry.value or b"") - (len(ours.value or b"") if ours is not None else 0)
        if self._bytes + grown > self._bytes_max or (ours is None and len(self.entries) >= self._keys_max):
            return False
        if ours is not None:
            self._remove(entry.key)
        self._bytes += len(entry.value or b"")
        self.entries[entry.key] = entry
        insort(self._by_version, (entry.version, entry.key))
        return ours is None or ours.value != entry.value

    def _remove(self, key: str) -> None:
        entry = self.entries.pop(key)
        self._bytes -= len(entry.value or b"")
        place = bisect_right(self._by_version, (entry.version, entry.key)) - 1
        del self._by_version[place]

    def _drop_under(self, floor: int) -> set[str]:
        dropped = {key for key, entry in self.entries.items() if entry.version <= floor}
        for key in dropped:
            self._remove(key)
        return dropped
