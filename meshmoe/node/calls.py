"""Requests to peers that wait for an answer: who was asked, under which id, and the answer when it comes.

An answer counts only if it comes from the peer that was asked. When a peer dies, everything asked of it fails at once,
so that nobody waits for a deadline in vain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count

import trio

from meshmoe.core.errors import OverloadedError, PeerError
from meshmoe.core.ids import NodeId
from meshmoe.wire.codec import Decoded


class PeerGoneError(PeerError):
    """The peer died or left before it answered."""


class PendingCall:
    """One question under way; `answer` waits for what comes of it."""

    __slots__ = ("_arrived", "_result", "answered_s", "id", "peer", "sent_s")

    def __init__(self, call_id: int, peer: NodeId) -> None:
        self.id = call_id
        self.peer = peer
        self.sent_s = trio.current_time()
        self.answered_s = math.inf
        self._arrived = trio.Event()
        self._result: Decoded | PeerError | None = None

    async def answer(self) -> Decoded:
        """Wait for the answer; the caller bounds the wait.

        Raises:
            PeerGoneError: The peer died or left meanwhile.
        """
        await self._arrived.wait()
        assert self._result is not None
        if isinstance(self._result, PeerError):
            raise self._result
        return self._result

    def has_settled(self) -> bool:
        """Whether the outcome is known."""
        return self._result is not None

    async def settled(self) -> None:
        """Wait until the outcome is known, whatever it is; the caller bounds the wait."""
        await self._arrived.wait()

    def settle(self, result: Decoded | PeerError) -> None:
        """Set the outcome; the first one stays."""
        if self._result is None:
            self._result = result
            self.answered_s = trio.current_time()
            self._arrived.set()


async def first_settled(calls: Sequence[PendingCall]) -> PendingCall:
    """Wait for the first outcome of several calls, good or bad; the caller bounds the wait."""
    if len(calls) == 1:
        await calls[0].settled()
    elif not any(call.has_settled() for call in calls):
        async with trio.open_nursery() as nursery:

            async def watch(call: PendingCall) -> None:
                await call.settled()
                nursery.cancel_scope.cancel()

            for call in calls:
                nursery.start_soon(watch, call)
    return min((call for call in calls if call.has_settled()), key=lambda call: call.answered_s)


class CallTable:
    """All questions under way, by id."""

    def __init__(self, pending_max: int = 4096) -> None:
        self._pending: dict[int, PendingCall] = {}
        self._ids = count(1, 2)  # even ones are those of `meshmoe.node.express_client`
        self._pending_max = pending_max

    def __len__(self) -> int:
        return len(self._pending)

    def open(self, peer: NodeId) -> PendingCall:
        """Begin a question to ``peer``; close it with `close`, whatever happens.

        Raises:
            OverloadedError: Too many are under way.
        """
        if len(self._pending) >= self._pending_max:
            raise OverloadedError(f"{self._pending_max} calls to peers are under way already: try again in a moment")
        call = PendingCall(next(self._ids), peer)
        self._pending[call.id] = call
        return call

    def close(self, call: PendingCall) -> None:
        """Forget a question; a late answer is then ignored."""
        self._pending.pop(call.id, None)

    def settle(self, call_id: int, sender: NodeId, answer: Decoded) -> bool:
        """Hand an answer to whoever waits for it.

        Returns:
            False when nobody waits for this answer from this sender: late, repeated, or made up.
        """
        call = self._pending.get(call_id)
        if call is None or call.peer != sender:
            return False
        call.settle(answer)
        return True

    def fail_peer(self, peer: NodeId, reason: str) -> None:
        """Everything asked of ``peer`` fails now."""
        for call in list(self._pending.values()):
            if call.peer == peer:
                call.settle(PeerGoneError(f"{peer} {reason}"))
