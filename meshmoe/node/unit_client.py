"""Weights and files from peers: a unit is fetched piece by piece, from where an earlier attempt ended.

A few requests are in flight at any time (the *credit*), enough to keep the link busy over a round trip. Pieces are
written in order. A peer that fails or lacks the unit is left for another one, which goes on at the same offset.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from meshmoe.core.endpoints import Lane
from meshmoe.core.errors import PeerError, WireError
from meshmoe.core.ids import NodeId
from meshmoe.model.store import PartialStore
from meshmoe.model.unit_names import UnitName
from meshmoe.node.calls import CallTable, PendingCall
from meshmoe.node.messenger import Messenger
from meshmoe.node.unit_server import wire_unit
from meshmoe.wire.codec import Decoded
from meshmoe.wire.frames import Frame
from meshmoe.wire.messages import CHUNK_BYTES, UnitChunk, UnitLacking, UnitRequest

logger = logging.getLogger(__name__)

CREDIT = 4
"""Requests in flight: 4 MiB outstanding fill 500 Mbit/s at 60 ms."""

PIECE_TIMEOUT_S = 20.0
"""Silence after which a peer is given up: a 1 MiB piece behind three others on 2 Mbit/s still comes in time."""

ROUNDS_MAX = 3
"""How often all peers are tried before a fetch fails."""


@dataclass(slots=True)
class Transfer:
    """A unit on its way in, for the status."""

    unit: UnitName
    peer: NodeId
    done_bytes: int
    total_bytes: int


class UnitClient:
    """Fetches units from peers."""

    def __init__(
        self, messenger: Messenger, calls: CallTable, observe_rate: Callable[[NodeId, int, float], None]
    ) -> None:
        """Make one; ``observe_rate`` is told peer, bytes and seconds of each transfer worth measuring."""
        self._messenger = messenger
        self._calls = calls
        self._observe_rate = observe_rate
        self.transfers: dict[UnitName, Transfer] = {}
        messenger.on(UnitChunk, lambda parcel, decoded: self._settle(parcel.sender, decoded))
        messenger.on(UnitLacking, lambda parcel, decoded: self._settle(parcel.sender, decoded))

    def _settle(self, sender: NodeId, decoded: Decoded) -> None:
        message = decoded.message
        assert isinstance(message, UnitChunk | UnitLacking)
        if not self._calls.settle(message.id, sender, decoded):
            self._messenger.faults["late_replies"] += 1

    async def fetch_bytes(self, peer: NodeId, unit: UnitName, size_bytes_max: int) -> bytes:
        """Fetch a small unit into memory (the manifest, before there is a store to put it in).

        Raises:
            PeerError: The peer lacks it, is silent, or claims a size over ``size_bytes_max``.
        """
        content = bytearray()

        async def keep(_offset: int, piece: Frame) -> None:
            content.extend(piece)

        await self._fetch(peer, unit, 0, size_bytes_max, keep)
        return bytes(content)

    async def fetch_piece(self, peer: NodeId, unit: UnitName, offset: int, total_bytes: int) -> Frame:
        """Fetch one piece (`CHUNK_BYTES`, or what is left) of a unit whose size is known.

        Raises:
            PeerError: The peer lacks the unit, is silent, or answers another question.
        """
        call = await self._request(peer, unit, offset)
        try:
            answer = await self._answer(call, unit)
        finally:
            self._calls.close(call)
        return _check(answer, peer, unit, offset, total_bytes)[1]

    async def fetch(self, store: PartialStore, unit: UnitName, peers: Callable[[], Sequence[NodeId]]) -> None:
        """Fetch a unit into the store, trying peers in turn; digest verified.

        Args:
            store: Where it goes; a part of it that is there already is not fetched again.
            unit: What to fetch.
            peers: Who may have it, best first; asked anew before every attempt.

        Raises:
            PeerError: Nobody had it, or nobody's bytes had the right digest.
            CapacityError: The disk is full.
        """
        problem = "no peer has it"
        for _ in range(ROUNDS_MAX):
            for peer in peers():
                try:
                    await self._fetch_into(store, unit, peer)
                except PeerError as error:
                    problem = str(error)
                    logger.info("fetching %s from %s: %s", unit, peer, problem)
                else:
                    return
            await trio.sleep(0.5)
        raise PeerError(f"{unit} could not be fetched from any peer: {problem}")

    async def _fetch_into(self, store: PartialStore, unit: UnitName, peer: NodeId) -> None:
        offset = await trio.to_thread.run_sync(store.begin, unit)
        total_bytes = store.unit_bytes(unit)
        transfer = Transfer(unit, peer, offset, total_bytes)
        self.transfers[unit] = transfer

        async def keep(at: int, piece: Frame) -> None:
            await trio.to_thread.run_sync(store.append, unit, at, piece)
            transfer.done_bytes = at + len(piece)

        try:
            if offset < total_bytes:
                await self._fetch(peer, unit, offset, total_bytes, keep)
            await trio.to_thread.run_sync(store.finish, unit)
        finally:
            del self.transfers[unit]

    async def _fetch(
        self,
        peer: NodeId,
        unit: UnitName,
        offset: int,
        size_bytes_max: int,
        keep: Callable[[int, Frame], Awaitable[None]],
    ) -> None:
        began, first = trio.current_time(), offset
        flight: deque[tuple[int, PendingCall]] = deque()
        next_offset, total_bytes = offset, size_bytes_max
        known = False
        try:
            while flight or next_offset < total_bytes:
                # Until the first answer tells the size, one request is enough to ask.
                while next_offset < total_bytes and len(flight) < (CREDIT if known else 1):
                    flight.append((next_offset, await self._request(peer, unit, next_offset)))
                    next_offset += CHUNK_BYTES
                at, call = flight[0]
                answer = await self._answer(call, unit)
                flight.popleft()
                self._calls.close(call)
                total_bytes, piece = _check(answer, peer, unit, at, size_bytes_max)
                known = True
                await keep(at, piece)
        finally:
            for _, call in flight:
                self._calls.close(call)
        took_s = trio.current_time() - began
        if total_bytes - first >= CHUNK_BYTES // 2 and took_s > 0:
            self._observe_rate(peer, total_bytes - first, took_s)

    async def _answer(self, call: PendingCall, unit: UnitName) -> Decoded:
        with trio.move_on_after(PIECE_TIMEOUT_S):
            return await call.answer()
        raise PeerError(f"{call.peer} sent nothing of {unit} for {PIECE_TIMEOUT_S:.0f} s")

    async def _request(self, peer: NodeId, unit: UnitName, offset: int) -> PendingCall:
        call = self._calls.open(peer)
        try:
            with trio.fail_after(PIECE_TIMEOUT_S):
                request = UnitRequest(id=call.id, unit=wire_unit(unit), offset=offset, length=CHUNK_BYTES)
                await self._messenger.send(peer, Lane.BULK, request)
        except trio.TooSlowError:
            self._calls.close(call)
            raise PeerError(f"{peer} takes no requests") from None
        except BaseException:
            self._calls.close(call)
            raise
        return call


def _check(answer: Decoded, peer: NodeId, unit: UnitName, at: int, size_bytes_max: int) -> tuple[int, Frame]:
    """The unit's size and the piece, or what is wrong with the answer."""
    message = answer.message
    if isinstance(message, UnitLacking):
        raise PeerError(f"{peer} does not have {unit}")
    assert isinstance(message, UnitChunk)
    if message.offset != at or message.unit != wire_unit(unit) or len(answer.payload) != 1:
        raise WireError(f"{peer} answered another question than for {unit} at {at}")
    if message.total_bytes > size_bytes_max:
        raise WireError(
            f"{peer} says that {unit} has {message.total_bytes} bytes, {size_bytes_max} is the most it can have"
        )
    piece = answer.payload[0]
    if len(piece) != min(CHUNK_BYTES, message.total_bytes - at):
        raise WireError(f"{peer} sent {len(piece)} bytes of {unit} at {at}, not what was asked for")
    return message.total_bytes, piece
