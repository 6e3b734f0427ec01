"""Weights and files for peers: answers `UnitRequest` with pieces read from this node's disk.

The asker keeps only a few requests in flight, so what it is owed is bounded by its own credit; how many pieces are read
at once is bounded here.
"""

from __future__ import annotations

import logging
from collections import Counter

import trio

from meshmoe.core.endpoints import Lane
from meshmoe.core.errors import CheckpointError, PeerError, WireError
from meshmoe.core.ids import NodeId
from meshmoe.model.source import WeightSource
from meshmoe.model.unit_names import UnitName
from meshmoe.node.messenger import Messenger
from meshmoe.transport.base import Parcel
from meshmoe.wire.codec import Decoded
from meshmoe.wire.messages import Unit, UnitChunk, UnitLacking, UnitRequest

logger = logging.getLogger(__name__)

SEND_TIMEOUT_S = 30.0
"""How long a piece may wait for room in the asker's queue; the asker asks again if it still wants it."""


class UnitServer:
    """Serves pieces of units; ``source`` is set once the node has one."""

    def __init__(self, messenger: Messenger, concurrent_max: int = 32, waiting_max: int = 512) -> None:
        self._messenger = messenger
        self._turns = trio.CapacityLimiter(concurrent_max)
        self._waiting_max = waiting_max
        self._serving: Counter[NodeId] = Counter()
        self._nursery: trio.Nursery | None = None
        self.source: WeightSource | None = None
        self.sent_bytes = 0
        messenger.on(UnitRequest, self._accept)

    async def run(self) -> None:
        """Own the tasks that serve, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    def _accept(self, parcel: Parcel, decoded: Decoded) -> None:
        request = decoded.message
        assert isinstance(request, UnitRequest)
        try:
            unit = unit_name(request.unit)
        except WireError:
            self._messenger.try_post(parcel.sender, Lane.BULK, UnitLacking(id=request.id, unit=request.unit))
            raise
        source = self.source
        if source is None or self._nursery is None or not source.has_unit(unit):
            self._messenger.try_post(parcel.sender, Lane.BULK, UnitLacking(id=request.id, unit=request.unit))
        elif self._serving.total() >= self._waiting_max or 2 * self._serving[parcel.sender] >= self._waiting_max:
            self._messenger.faults["bulk_busy"] += 1  # not answered: the asker's deadline brings it back
        else:
            self._serving[parcel.sender] += 1
            self._nursery.start_soon(self._serve, parcel.sender, request, unit, source)

    async def _serve(self, peer: NodeId, request: UnitRequest, unit: UnitName, source: WeightSource) -> None:
        try:
            async with self._turns:
                total_bytes = source.unit_bytes(unit)
                piece = await trio.to_thread.run_sync(source.read_unit, unit, request.offset, request.length)
                chunk = UnitChunk(id=request.id, unit=request.unit, offset=request.offset, total_bytes=total_bytes)
                with trio.fail_after(SEND_TIMEOUT_S):
                    self.sent_bytes += await self._messenger.send(peer, Lane.BULK, chunk, piece)
        except CheckpointError as error:  # deleted or damaged since it was looked up
            logger.warning("cannot serve %s to %s: %s", unit, peer, error)
            self._messenger.try_post(peer, Lane.BULK, UnitLacking(id=request.id, unit=request.unit))
        except (PeerError, trio.TooSlowError):
            self._messenger.faults["bulk_unsent"] += 1
        finally:
            self._serving[peer] -= 1
            if not self._serving[peer]:
                del self._serving[peer]


def unit_name(unit: Unit) -> UnitName:
    """The checked name of what a peer asks for.

    Raises:
        WireError: There can be no such unit.
    """
    return UnitName(unit.kind, unit.name, unit.layer, unit.index)


def wire_unit(unit: UnitName) -> Unit:
    """The name as it travels."""
    return Unit(unit.kind, unit.name, unit.layer, unit.index)
