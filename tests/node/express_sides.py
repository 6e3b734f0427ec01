"""Two engines and a peer that does what a test says, over real sockets: nodes as far as expert calls go."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

import torch
import trio
import trio.testing

from meshmoe.core.endpoints import Lane
from meshmoe.core.errors import ExpertUnavailableError
from meshmoe.core.ids import NodeId
from meshmoe.engine.engine import open_engine
from meshmoe.engine.model import load_moe_model
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.remote import LayerCall
from meshmoe.engine.request import GenerationStats
from meshmoe.engine.schedule import Priority
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.loading import load_expert
from meshmoe.model.tiny import make_tiny_checkpoint
from meshmoe.node.calls import CallTable
from meshmoe.node.expert_client import CallPatience, ExpertClient, MeshKnowledge
from meshmoe.node.expert_server import ExpertServer
from meshmoe.node.express import Express
from meshmoe.node.messenger import Messenger
from meshmoe.node.vigil import Vigil
from meshmoe.transport.zmq_transport import open_zmq_transport
from meshmoe.wire.codec import Decoded
from meshmoe.wire.frames import Frame
from meshmoe.wire.messages import CallCancel, ExpertCall

ASKER, HOLDER, SPARE = NodeId("asker"), NodeId("holder"), NodeId("spare")
ROW = torch.ones(1, 64)

Answer = Callable[[Decoded], list[Frame] | None]
"""What comes back for a call, in frames; None for silence."""


def open_tiny(directory: Path) -> Checkpoint:
    """A model to ask for experts of, with its kernels compiled."""
    opened = Checkpoint.open(make_tiny_checkpoint("qwen3_moe", directory, dtype=torch.float32))
    load_moe_model(opened)  # compiles kernels, the first time; tests have deadlines
    return opened


class Side:
    """A node as far as expert calls go."""

    def __init__(self, engine, messenger, client, express):
        self.engine, self.messenger, self.client, self.express = engine, messenger, client, express
        self.stats = GenerationStats()

    @property
    def counts(self):
        """With what compiled code has counted, where there is any."""
        if self.express.rounds is not None:
            self.express.rounds.count()
        return self.express.counts

    async def ask(self, experts=(0, 1), rows=ROW, decode=True, take=None):
        """One layer call from a job, as a forward pass makes it."""
        call = LayerCall(1, rows, {expert: list(range(len(rows))) for expert in experts}, decode, self.stats, take)

        def job_body(job):
            job.checkpoint()
            return job.ask(self.client, call).wait()

        async with trio.open_nursery() as nursery:
            try:
                return await self.engine.compute.run(Priority.DECODE, job_body, nursery=nursery)
            except ExpertUnavailableError as error:
                failure = error  # past the nursery, which would put it into a group
        raise failure


@asynccontextmanager
async def _open_side(name, checkpoint, transport, knowledge, holds, patience=None):
    model, pool = load_moe_model(checkpoint), ExpertPool(1 << 40)
    for expert in filter(holds, model.experts):
        pool.add(expert, load_expert(checkpoint, expert, model.dtype))
    messenger = Messenger(transport)
    client = ExpertClient(messenger, CallTable(), knowledge, patience)
    client.resident = pool.__contains__
    server = ExpertServer(messenger, knowledge, name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(messenger.run)
        nursery.start_soon(server.run)
        async with open_engine(model, pool, client) as engine:
            await trio.testing.wait_all_tasks_blocked()
            server.engine = engine
            await messenger.stop_receiving(Lane.DATA)
            express = Express(transport.open_direct(Lane.DATA), engine, knowledge, client, server, messenger, Vigil())
            engine.compute.attach(express)
            yield Side(engine, messenger, client, express)
        nursery.cancel_scope.cancel()


class Odd:
    """A peer whose answer to a call is what the test says."""

    def __init__(self, transport, answer):
        self.calls, self.cancelled = [], trio.Event()
        self.transport, self._messenger, self._answer = transport, Messenger(transport), answer
        self._messenger.on(ExpertCall, self._called)
        self._messenger.on(CallCancel, lambda parcel, decoded: self.cancelled.set())

    async def run(self):
        await self._messenger.run()

    def _called(self, parcel, decoded):
        self.calls.append(decoded.message)
        frames = self._answer(decoded)
        if frames is not None:
            self.transport.post(parcel.sender, Lane.DATA, frames)


@asynccontextmanager
async def _open_case(checkpoint, asker_knows, holder_knows, asker_holds, answer, patience):
    async with (
        open_zmq_transport(ASKER, 1) as a,
        open_zmq_transport(HOLDER, 1) as b,
        open_zmq_transport(SPARE, 1) as c,
        trio.open_nursery() as nursery,
    ):
        for name, transport in ((HOLDER, b), (SPARE, c)):
            a.connect(name, transport.endpoints)
            transport.connect(ASKER, a.endpoints)
        odd = Odd(c, answer)
        nursery.start_soon(odd.run)
        async with (
            _open_side(ASKER, checkpoint, a, asker_knows, asker_holds, patience) as asker,
            _open_side(HOLDER, checkpoint, b, holder_knows, lambda expert: True) as holder,
        ):
            while not (a.connected(HOLDER, Lane.DATA) and b.connected(ASKER, Lane.DATA)):
                await trio.sleep(0.01)
            while not (a.connected(SPARE, Lane.DATA) and c.connected(ASKER, Lane.DATA)):
                await trio.sleep(0.01)
            yield asker, holder, odd
        nursery.cancel_scope.cancel()


def run_case(
    case,
    checkpoint: Checkpoint,
    asker_knows: MeshKnowledge,
    holder_knows: MeshKnowledge,
    *,
    asker_holds,
    answer: Answer | None = None,
    patience: CallPatience | None = None,
) -> None:
    """Run ``case(asker, holder, odd)`` with the sides `ASKER` and `HOLDER`, and the odd peer `SPARE`.

    Args:
        case: What the test does.
        checkpoint: The model; the holder has all of its experts.
        asker_knows: What the asker knows of the mesh.
        holder_knows: What the holder does.
        asker_holds: Whether the asker has an expert.
        answer: Of the odd peer; may be missing where nobody asks it.
        patience: The asker's.
    """

    async def main():
        with trio.fail_after(60):
            async with _open_case(checkpoint, asker_knows, holder_knows, asker_holds, answer, patience) as sides:
                await case(*sides)

    trio.run(main)
