"""Carries out what custody asks for about experts' weights: look, fetch a piece, append it, load it, let it be.

Custody decides (`meshmoe.custody.intake`), this file does: pieces are fetched side by side, but their outcomes are
told, and what concerns one expert's unit on disk is done, in the order in which it was asked for. (Requests may
overtake each other, and so may answers; custody takes only the piece that comes next, and would wait for the others in
vain.) Outcomes go back to custody as events. The disk is only touched in threads.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

import torch
import trio

from meshmoe.core.errors import CheckpointError, MeshmoeError, PeerError
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody import (
    CustodyEvent,
    OnDisk,
    PieceArrived,
    PieceFailed,
    RequestPiece,
    UnitFailed,
    UnitLoaded,
    UnitOpened,
)
from meshmoe.engine.pool import ExpertPool
from meshmoe.model.experts_modules import ExpertWeights
from meshmoe.model.loading import load_expert
from meshmoe.model.source import WeightSource
from meshmoe.model.store import PartialStore
from meshmoe.model.unit_names import UnitName
from meshmoe.node.unit_client import Transfer, UnitClient
from meshmoe.wire.frames import Frame

logger = logging.getLogger(__name__)

Step = Callable[[], Awaitable[None]]


class UnitIntake:
    """See the module's text."""

    def __init__(
        self,
        source: WeightSource,
        pool: ExpertPool,
        unit_client: UnitClient,
        expert_bytes: Mapping[ExpertId, int],
        dtype: torch.dtype,
        feed: Callable[[CustodyEvent], None],
    ) -> None:
        """Make one.

        Args:
            source: This node's disk.
            pool: Where loaded experts go.
            unit_client: Fetches pieces.
            expert_bytes: Size of each expert in memory.
            dtype: In which experts are computed.
            feed: Takes what becomes of it.
        """
        self._source = source
        self._pool = pool
        self._unit_client = unit_client
        self._expert_bytes = expert_bytes
        self._dtype = dtype
        self._feed = feed
        self._steps: dict[ExpertId, deque[Step]] = {}
        self._pieces: dict[tuple[ExpertId, int], Frame] = {}
        self._told: dict[ExpertId, trio.Event] = {}
        """Set when the outcome of the last piece asked for has been told; for each expert with pieces on their way."""
        self._nursery: trio.Nursery | None = None
        self._stopped = False
        """The node stops: custody may still ask in the same moment, and nothing comes of it."""

    async def run(self) -> None:
        """Own the tasks, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await trio.sleep_forever()
        finally:
            self._stopped = True

    def on_disk(self) -> OnDisk:
        """Which experts this node's disk has."""
        if isinstance(self._source, PartialStore):
            return OnDisk(self._source.stored_experts())
        return OnDisk(frozenset(self._expert_bytes))

    def open(self, expert: ExpertId) -> None:
        """Answered by `UnitOpened` or `UnitFailed`."""
        self._then(expert, lambda: self._open(expert))

    def request(self, asked: RequestPiece) -> None:
        """Answered by `PieceArrived` or `PieceFailed`."""
        if self._stopped:
            return
        assert self._nursery is not None
        before, told = self._told.get(asked.expert), trio.Event()
        self._told[asked.expert] = told
        self._nursery.start_soon(self._fetch, asked, before, told)

    def store(self, expert: ExpertId, offset: int) -> None:
        """Append the piece that has arrived."""
        piece = self._pieces.pop((expert, offset))
        self._then(expert, lambda: self._append(expert, offset, piece))

    def forget_piece(self, expert: ExpertId, offset: int) -> None:
        """A piece that arrived is not wanted, or is stored by now."""
        self._pieces.pop((expert, offset), None)

    def load(self, expert: ExpertId) -> None:
        """Answered by `UnitLoaded` or `UnitFailed`."""
        self._then(expert, lambda: self._load(expert))

    def abandon(self, expert: ExpertId) -> None:
        """No more of it is wanted; what is on disk stays for a later attempt."""
        self._unit_client.transfers.pop(UnitName.of_expert(expert), None)

    # -- one step after the other ------------------------------------------------------------

    def _then(self, expert: ExpertId, step: Step) -> None:
        if self._stopped:
            return
        if expert in self._steps:
            self._steps[expert].append(step)
            return
        assert self._nursery is not None
        self._steps[expert] = deque([step])
        self._nursery.start_soon(self._drain, expert)

    async def _drain(self, expert: ExpertId) -> None:
        steps = self._steps[expert]
        try:
            while steps:
                await steps.popleft()()
        finally:
            del self._steps[expert]

    async def _open(self, expert: ExpertId) -> None:
        unit = UnitName.of_expert(expert)
        try:
            total_bytes = self._source.unit_bytes(unit)
            if self._source.has_expert(expert):
                offset = total_bytes
            elif isinstance(self._source, PartialStore):
                offset = await trio.to_thread.run_sync(self._source.begin, unit)
                self._unit_client.transfers[unit] = Transfer(unit, NodeId(""), offset, total_bytes)
            else:
                raise CheckpointError(f"expert {expert} is not in {self._source.directory}")
        except MeshmoeError as error:
            self._failed(expert, error)
        else:
            self._feed(UnitOpened(expert, offset, total_bytes))

    async def _fetch(self, asked: RequestPiece, before: trio.Event | None, told: trio.Event) -> None:
        """Fetch a piece; say what came of it after all pieces asked for ``before``."""
        unit, expert = UnitName.of_expert(asked.expert), asked.expert
        transfer = self._unit_client.transfers.get(unit)
        if transfer is not None:
            transfer.peer = asked.peer
        outcome: CustodyEvent
        piece: Frame | None = None
        try:
            piece = await self._unit_client.fetch_piece(asked.peer, unit, asked.offset, self._source.unit_bytes(unit))
            outcome = PieceArrived(expert, asked.peer, asked.offset, len(piece))
        except PeerError as error:
            logger.info("fetching %s from %s: %s", unit, asked.peer, error)
            outcome = PieceFailed(expert, asked.peer)
        if before is not None:
            await before.wait()
        if piece is not None:
            self._pieces[expert, asked.offset] = piece
        self._feed(outcome)
        told.set()
        if self._told.get(expert) is told:
            del self._told[expert]

    async def _append(self, expert: ExpertId, offset: int, piece: Frame) -> None:
        unit = UnitName.of_expert(expert)
        assert isinstance(self._source, PartialStore)
        try:
            await trio.to_thread.run_sync(self._source.append, unit, offset, piece)
        except MeshmoeError as error:
            # The unit is then short, and loading it fails: from there custody begins again with what is on disk.
            logger.warning("storing %s: %s", unit, error)
        else:
            transfer = self._unit_client.transfers.get(unit)
            if transfer is not None:
                transfer.done_bytes = offset + len(piece)

    async def _load(self, expert: ExpertId) -> None:
        unit = UnitName.of_expert(expert)
        self._unit_client.transfers.pop(unit, None)
        try:
            if not self._source.has_expert(expert) and isinstance(self._source, PartialStore):
                await trio.to_thread.run_sync(self._source.finish, unit)
                self._feed(self.on_disk())
            with self._pool.reserve(expert, self._expert_bytes[expert]) as reservation:
                reservation.commit(await trio.to_thread.run_sync(self._read, expert))
        except MeshmoeError as error:
            self._failed(expert, error)
        else:
            self._feed(UnitLoaded(expert))

    def _read(self, expert: ExpertId) -> ExpertWeights:
        return self._pool.placed(load_expert(self._source, expert, self._dtype))

    def _failed(self, expert: ExpertId, error: MeshmoeError) -> None:
        logger.warning("expert %s cannot be brought in: %s", expert, error)
        self._feed(self.on_disk())  # a damaged unit is deleted
        self._feed(UnitFailed(expert, str(error)))
