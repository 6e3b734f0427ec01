"""Expert calls from peers: check, compute, answer. One task a call, bounded; a cancelled call leaves the queue."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from meshmoe.core.endpoints import Lane
from meshmoe.core.errors import MeshmoeError, OverloadedError, PeerError, WireError
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.core.messages import Message
from meshmoe.engine.engine import Engine
from meshmoe.engine.pool import NotResidentError
from meshmoe.node.call_room import CallRoom
from meshmoe.node.expert_client import MeshKnowledge
from meshmoe.node.messenger import Messenger
from meshmoe.transport.base import Parcel
from meshmoe.wire.codec import Decoded
from meshmoe.wire.frames import Frame
from meshmoe.wire.messages import CallCancel, CallFailed, ExpertCall, ExpertMoved, ExpertReply
from meshmoe.wire.tensors import pack_tensor, unpack_tensor

logger = logging.getLogger(__name__)

SEND_TIMEOUT_S = 10.0
"""How long an answer waits for room in the peer's queue."""


class ExpertServer:
    """Serves `ExpertCall`; register it before the engine is there, and hand the engine over when it is."""

    def __init__(self, messenger: Messenger, mesh: MeshKnowledge, node: NodeId, concurrent_max: int = 256) -> None:
        self._messenger = messenger
        self._mesh = mesh
        self._node = node
        self._serving: dict[tuple[NodeId, int], trio.CancelScope] = {}
        self._room = CallRoom(concurrent_max)
        self._nursery: trio.Nursery | None = None
        self.engine: Engine | None = None
        self.rows_served = 0
        messenger.on(ExpertCall, self._accept)
        messenger.on(CallCancel, self._cancel)

    async def run(self) -> None:
        """Own the tasks that serve calls, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    def send_later(self, peer: NodeId, frames: Sequence[Frame]) -> None:
        """Send an answer that does not go at once, as soon as there is room."""
        if self._nursery is not None:
            self._nursery.start_soon(self._send, peer, frames)

    async def _send(self, peer: NodeId, frames: Sequence[Frame]) -> None:
        with trio.move_on_after(SEND_TIMEOUT_S):
            try:
                await self._messenger.transport.send(peer, Lane.DATA, frames)
            except PeerError as error:
                logger.info("answer to %s: %s", peer, error)

    def _accept(self, parcel: Parcel, decoded: Decoded) -> None:
        call = decoded.message
        assert isinstance(call, ExpertCall)
        if decoded.tensor is None:
            raise WireError(f"expert call {call.id} has no tensor")
        if self.engine is None or self._nursery is None:
            return self._answer(parcel.sender, CallFailed(id=call.id, reason="stopping", text="not serving yet"))
        if (parcel.sender, call.id) in self._serving:
            raise WireError(f"expert call {call.id} came twice")
        if not self._room.enter(parcel.sender, decoded.tensor.header.size_bytes):
            return self._answer(parcel.sender, CallFailed(id=call.id, reason="busy"))
        self._nursery.start_soon(self._serve, parcel.sender, call, decoded, self.engine)
        return None

    def _cancel(self, parcel: Parcel, decoded: Decoded) -> None:
        assert isinstance(decoded.message, CallCancel)
        scope = self._serving.get((parcel.sender, decoded.message.id))
        if scope is not None:
            scope.cancel()

    async def _serve(self, peer: NodeId, call: ExpertCall, decoded: Decoded, engine: Engine) -> None:
        began = trio.current_time()
        key = (peer, call.id)
        with trio.CancelScope() as scope:
            self._serving[key] = scope
            try:
                assert decoded.tensor is not None
                outputs = await engine.compute_experts(
                    call.layer,
                    [(wanted.index, wanted.rows) for wanted in call.experts],
                    unpack_tensor(decoded.tensor),
                    decode=call.decode,
                    deadline=began + call.budget_ms / 1000,
                )
                took_us = int((trio.current_time() - began) * 1e6)
                frame = pack_tensor(outputs)
                self.rows_served += outputs.shape[0]
                await self._messenger.send(peer, Lane.DATA, ExpertReply(id=call.id, compute_us=took_us), tensor=frame)
            except NotResidentError as error:
                lacking: list[tuple[int, str | None]] = [(e.index, self._other_holder(e, peer)) for e in error.experts]
                self._answer(peer, ExpertMoved(id=call.id, lacking=lacking))
            except OverloadedError:
                self._answer(peer, CallFailed(id=call.id, reason="busy"))
            except PeerError as error:
                logger.info("expert call from %s: %s", peer, error)
            except MeshmoeError as error:
                self._messenger.blame(peer, "bad_call", error)
                self._answer(peer, CallFailed(id=call.id, reason="bad_call", text=str(error)[:500]))
            except Exception as error:
                # A kernel that fails must cost this call, not the node; the caller goes to another holder.
                logger.exception("expert call from %s failed", peer)
                self._answer(peer, CallFailed(id=call.id, reason="error", text=type(error).__name__))
            finally:
                self._serving.pop(key, None)
                self._room.leave(peer, decoded.tensor.header.size_bytes if decoded.tensor is not None else 0)

    def _other_holder(self, expert: ExpertId, asker: NodeId) -> NodeId | None:
        others = [peer for peer in self._mesh.holders(expert) if peer not in (asker, self._node)]
        return others[0] if others else None

    def _answer(self, peer: NodeId, message: Message) -> None:
        self._messenger.try_post(peer, Lane.DATA, message)
