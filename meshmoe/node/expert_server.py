"""Expert calls from peers: check, compute, answer. One task a call, bounded; a cancelled call leaves the queue."""

from __future__ import annotations

import logging
from collections import Counter

import trio

from meshmoe.core.endpoints import Lane
from meshmoe.core.errors import MeshmoeError, OverloadedError, PeerError, WireError
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.core.messages import Message
from meshmoe.engine.engine import Engine
from meshmoe.engine.pool import NotResidentError
from meshmoe.node.expert_client import MeshKnowledge
from meshmoe.node.messenger import Messenger
from meshmoe.transport.base import Parcel
from meshmoe.wire.codec import Decoded
from meshmoe.wire.messages import CallCancel, CallFailed, ExpertCall, ExpertMoved, ExpertReply
from meshmoe.wire.tensors import pack_tensor, unpack_tensor

logger = logging.getLogger(__name__)

WAITING_BYTES_MAX = 256 << 20
"""Hidden states of calls that wait or are computed; what comes beyond is answered with busy."""


class ExpertServer:
    """Serves `ExpertCall`; register it before the engine is there, and hand the engine over when it is."""

    def __init__(self, messenger: Messenger, mesh: MeshKnowledge, node: NodeId, concurrent_max: int = 256) -> None:
        self._messenger = messenger
        self._mesh = mesh
        self._node = node
        self._concurrent_max = concurrent_max
        self._serving: dict[tuple[NodeId, int], trio.CancelScope] = {}
        self._taken_calls: Counter[NodeId] = Counter()
        self._taken_bytes: Counter[NodeId] = Counter()
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

    def _accept(self, parcel: Parcel, decoded: Decoded) -> None:
        call = decoded.message
        assert isinstance(call, ExpertCall)
        if decoded.tensor is None:
            raise WireError(f"expert call {call.id} has no tensor")
        if self.engine is None or self._nursery is None:
            return self._answer(parcel.sender, CallFailed(id=call.id, reason="stopping", text="not serving yet"))
        if not self._has_room(parcel.sender, decoded.tensor.header.size_bytes):
            return self._answer(parcel.sender, CallFailed(id=call.id, reason="busy"))
        if (parcel.sender, call.id) in self._serving:
            raise WireError(f"expert call {call.id} came twice")
        self._taken_bytes[parcel.sender] += decoded.tensor.header.size_bytes
        self._taken_calls[parcel.sender] += 1
        self._nursery.start_soon(self._serve, parcel.sender, call, decoded, self.engine)
        return None

    def _has_room(self, peer: NodeId, size_bytes: int) -> bool:
        """Whether one more call may wait here; one peer gets half of the room at most and leaves the rest to others."""
        calls, calls_of_peer = self._taken_calls.total(), self._taken_calls[peer]
        held, held_of_peer = self._taken_bytes.total(), self._taken_bytes[peer]
        if calls >= self._concurrent_max or 2 * calls_of_peer >= self._concurrent_max:
            return False
        return held + size_bytes <= WAITING_BYTES_MAX and (not held_of_peer or 2 * held_of_peer <= WAITING_BYTES_MAX)

    def _done(self, peer: NodeId, size_bytes: int) -> None:
        self._taken_bytes[peer] -= size_bytes
        self._taken_calls[peer] -= 1
        if not self._taken_calls[peer]:
            del self._taken_calls[peer], self._taken_bytes[peer]

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
                self._done(peer, decoded.tensor.header.size_bytes if decoded.tensor is not None else 0)

    def _other_holder(self, expert: ExpertId, asker: NodeId) -> NodeId | None:
        others = [peer for peer in self._mesh.holders(expert) if peer not in (asker, self._node)]
        return others[0] if others else None

    def _answer(self, peer: NodeId, message: Message) -> None:
        self._messenger.try_post(peer, Lane.DATA, message)
