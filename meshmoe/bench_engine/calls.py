"""An expert call of 8 KiB on loopback, from raw ZeroMQ up to the whole node, in turns: where its microseconds go.

*raw* is two DEALER sockets with a blocking thread at each end, which is as fast as ZeroMQ gets in Python. *transport*
is a parcel there and back through the product's transport on trio, *messages* the same with an expert call and its
reply encoded, decoded and validated at both ends. *node* is the real thing: from a job on the compute thread of one
node to that of another, which computes the expert, and back. Beside them, what single steps take alone in a tight loop.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import timeit
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import msgspec
import torch
import trio
import zmq

from meshmoe.bench_engine.turns import Progress
from meshmoe.core.config import Capacity
from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.core.token import Contact, parse_peer
from meshmoe.engine.counts import ActivationCounts
from meshmoe.engine.dispatch import RequestDispatch
from meshmoe.engine.job import Job
from meshmoe.engine.kernels.choice import compute
from meshmoe.engine.request import GenerationStats
from meshmoe.engine.routing import Group
from meshmoe.engine.schedule import Priority
from meshmoe.model.bench_checkpoint import BenchShape, make_bench_checkpoint
from meshmoe.node.node import Node
from meshmoe.node.settings import NodeSettings
from meshmoe.transport.envelope import seal, unseal
from meshmoe.transport.zmq_transport import open_zmq_transport
from meshmoe.wire.codec import CODEC
from meshmoe.wire.frames import Frame
from meshmoe.wire.messages import ExpertCall, ExpertReply, ExpertRows
from meshmoe.wire.tensors import pack_tensor, unpack_tensor

HIDDEN = 4096
"""In bfloat16 a row is 8 KiB."""

_SHAPE = BenchShape(
    hidden=HIDDEN, layers=2, heads=2, kv_heads=1, head_dim=64, experts=4, top_k=1, expert_width=16, vocab=288
)
_START_S = 60.0
_SPAWN = multiprocessing.get_context("spawn")
_ASKER, _ECHO = NodeId("asker"), NodeId("echo")
_PAYLOAD = b"x" * (2 * HIDDEN)
_ROW_0 = torch.zeros(1, dtype=torch.int64)


class CallFigure(msgspec.Struct, frozen=True):
    """Medians of round trips, and of steps, in microseconds.

    Attributes:
        raw: See the module's text.
        transport: The same.
        messages: The same.
        node: The same.
        express: The same between nodes that were started with ``--express``, which is the default.
        steps: What single steps take alone; those of *messages* happen twice a round trip.
    """

    raw: float
    transport: float
    messages: float
    node: float
    express: float
    steps: dict[str, float]


def measure_calls(rounds: int, turns: int, progress: Progress) -> CallFigure:
    """Measure all of it.

    Args:
        rounds: Round trips in a turn; the first tenth does not count.
        turns: Of which the medians are taken.
        progress: Told what is going on.
    """
    return trio.run(_measure, rounds, turns, progress)


async def _measure(rounds: int, turns: int, progress: Progress) -> CallFigure:
    found: dict[str, list[float]] = {}

    def note(kind: str, took_s: list[float]) -> None:
        found.setdefault(kind, []).append(1e6 * median(took_s[len(took_s) // 10 :]))

    with tempfile.TemporaryDirectory(prefix="mm-", ignore_cleanup_errors=True) as directory:
        model = make_bench_checkpoint(Path(directory) / "model", _SHAPE)
        progress("starting two nodes")
        async with (
            _two_nodes(Path(directory), model, "usual") as caller,
            _two_nodes(Path(directory), model, "express") as fast,
        ):
            for turn in range(turns):
                progress(f"turn {turn + 1} of {turns}")
                note("raw", await trio.to_thread.run_sync(_raw_rounds, rounds))
                note("transport", await _parcel_rounds(rounds, "parcel"))
                note("messages", await _parcel_rounds(rounds, "messages"))
                note("node", await _node_rounds(caller, rounds))
                note("express", await _node_rounds(fast, rounds))
            assert caller.pool is not None
            steps = await _steps(caller)
    medians = {kind: median(values) for kind, values in found.items()}
    return CallFigure(**medians, steps=steps)


# -- the whole node ------------------------------------------------------------------------------------------------


def _settings(
    directory: Path, name: NodeId, share: float, model: Path, peers: tuple[Contact, ...] = ()
) -> NodeSettings:
    return NodeSettings(
        node=name,
        listen=("127.0.0.1", 0),
        capacity=Capacity(share=share),
        model=model,
        peers=peers,
        socket_path=directory / f"{name}.sock",
        state_dir=directory / name,
        cache_dir=directory / "cache",
        express=directory.name == "express",
    )


def _run_holder(pipe: Connection, directory: Path, model: Path) -> None:
    """The other process: a node that holds everything."""

    async def live() -> None:
        node = Node(_settings(directory, _ECHO, 1.0, model))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.run)
            await node.ready.wait()
            assert node.parts is not None
            pipe.send(node.join_word())
            await trio.to_thread.run_sync(pipe.recv, abandon_on_cancel=True)
            node.stop()

    trio.run(live)


@asynccontextmanager
async def _two_nodes(directory: Path, model: Path, way: str) -> AsyncIterator[Node]:
    """A node in this process that lacks experts, and one in another process that has them."""
    directory = directory / way
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_run_holder, args=(there, directory, model), daemon=True)
    process.start()
    try:
        with trio.fail_after(_START_S):
            word = await trio.to_thread.run_sync(here.recv, abandon_on_cancel=True)
        node = Node(_settings(directory, _ASKER, 0.25, model, (parse_peer(word),)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.run)
            with trio.fail_after(_START_S):
                await node.ready.wait()
                assert node.parts is not None
                assert node.pool is not None
                while not (node.pool.experts() and _lacking(node)):
                    await node.parts.mesh.wait_changed()
            yield node
            node.stop()
        here.send(None)
    finally:
        process.join(5)
        process.kill()


def _lacking(node: Node) -> ExpertId | None:
    """An expert that only the other node holds."""
    assert node.model is not None
    assert node.pool is not None
    assert node.parts is not None
    lacking = (expert for expert in node.model.experts if expert not in node.pool)
    return next((expert for expert in lacking if node.parts.mesh.holders(expert)), None)


async def _node_rounds(node: Node, rounds: int) -> list[float]:
    engine, expert = node.serving.engine, _lacking(node)
    assert engine is not None
    assert expert is not None
    assert node.parts is not None
    pool, remote = engine.pool, node.parts.expert_client
    counts = ActivationCounts.zeros([_SHAPE.experts] * _SHAPE.layers)
    hidden = torch.randn(1, HIDDEN).to(torch.bfloat16)

    def ask(job: Job) -> list[float]:
        dispatch = RequestDispatch(job, pool, remote, GenerationStats(), counts, decode=True)
        missing, took_s = [Group(expert.index, _ROW_0)], []
        for _ in range(rounds):
            job.checkpoint()
            began = time.perf_counter()
            dispatch.receive(dispatch.send(expert.layer, hidden, missing), expert.layer, hidden, missing)
            took_s.append(time.perf_counter() - began)
        return took_s

    async with trio.open_nursery() as nursery:
        return await engine.compute.run(Priority.DECODE, ask, nursery=nursery)


# -- below the node ------------------------------------------------------------------------------------------------


def _raw_echo(pipe: Connection) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        pipe.send(socket.bind_to_random_port("tcp://127.0.0.1"))
        while message := socket.recv():
            socket.send(message)


def _raw_rounds(count: int) -> list[float]:
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_raw_echo, args=(there,), daemon=True)
    process.start()
    took_s = []
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(f"tcp://127.0.0.1:{here.recv()}")
        for _ in range(count):
            began = time.perf_counter()
            socket.send(_PAYLOAD)
            socket.recv()
            took_s.append(time.perf_counter() - began)
        socket.send(b"")
    process.join()
    return took_s


async def _echo(pipe: Connection, kind: str) -> None:
    async with open_zmq_transport(_ECHO, 1) as transport:
        pipe.send(transport.endpoints)
        transport.connect(_ASKER, pipe.recv())
        while True:
            parcel = await transport.receive(Lane.DATA)
            if len(parcel.frames) == 1 and not len(parcel.frames[0]):
                return
            frames = [bytes(frame) for frame in parcel.frames]
            if kind == "messages":
                transport.post(_ASKER, Lane.DATA, _answered(parcel.frames))
            else:
                transport.post(_ASKER, Lane.DATA, frames)


def _run_echo(pipe: Connection, kind: str) -> None:
    trio.run(_echo, pipe, kind)


async def _parcel_rounds(count: int, kind: str) -> list[float]:
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_run_echo, args=(there, kind), daemon=True)
    process.start()
    hidden = torch.zeros(1, HIDDEN, dtype=torch.bfloat16)
    took_s = []
    async with open_zmq_transport(_ASKER, 1) as transport:
        transport.connect(_ECHO, await trio.to_thread.run_sync(here.recv))
        here.send(transport.endpoints)
        for number in range(count):
            began = time.perf_counter()
            frames = _asked(number, hidden) if kind == "messages" else [_PAYLOAD]
            transport.post(_ECHO, Lane.DATA, frames)
            parcel = await transport.receive(Lane.DATA)
            if kind == "messages":
                _taken(parcel.frames)
            took_s.append(time.perf_counter() - began)
        transport.post(_ECHO, Lane.DATA, [b""])
        await trio.to_thread.run_sync(process.join)
    return took_s


# -- single steps --------------------------------------------------------------------------------------------------


def _asked(number: int, hidden: torch.Tensor) -> list[Frame]:
    call = ExpertCall(id=number, layer=1, experts=[ExpertRows(2, [])], budget_ms=2000, decode=True)
    return CODEC.encode(call, tensor=pack_tensor(hidden))


def _answered(frames: Sequence[Frame]) -> list[Frame]:
    decoded = CODEC.decode(frames)
    assert isinstance(decoded.message, ExpertCall)
    assert decoded.tensor is not None
    return CODEC.encode(ExpertReply(id=decoded.message.id), tensor=pack_tensor(unpack_tensor(decoded.tensor)))


def _taken(frames: Sequence[Frame]) -> torch.Tensor:
    tensor = CODEC.decode(frames).tensor
    assert tensor is not None
    return unpack_tensor(tensor)


async def _steps(node: Node) -> dict[str, float]:
    """Medians of single steps, in microseconds."""
    assert node.model is not None
    assert node.pool is not None
    engine = node.serving.engine
    assert engine is not None
    hidden = torch.randn(1, HIDDEN).to(torch.bfloat16)
    call = [memoryview(frame) for frame in _asked(1, hidden)]
    reply = [memoryview(frame) for frame in _answered(call)]
    decoded = CODEC.decode(call)
    assert decoded.tensor is not None
    tensor, sealed = decoded.tensor, memoryview(seal(call))
    expert = next(iter(node.pool.experts()))
    weights, module = node.pool.get(expert), node.model.layers[expert.layer].module
    assert weights is not None

    def alone(step: Callable[[], object]) -> float:
        return 1e6 * median(timeit.repeat(step, number=20, repeat=50)) / 20

    def on_compute(job: Job) -> dict[str, float]:
        hop = 1e6 * median(timeit.repeat(lambda: job.call(trio.lowlevel.checkpoint).wait(), number=1, repeat=500))
        return {
            "compute the expert": alone(lambda: compute(module, weights, hidden)),
            "from the compute thread to trio and back": hop,
        }

    steps = {
        "encode a call": alone(lambda: _asked(1, hidden)),
        "decode a call": alone(lambda: CODEC.decode(call)),
        "decode a reply": alone(lambda: CODEC.decode(reply)),
        "copy a tensor out of a frame": alone(lambda: unpack_tensor(tensor)),
        "seal a parcel": alone(lambda: seal(call)),
        "unseal a parcel": alone(lambda: unseal(sealed)),
    }
    async with trio.open_nursery() as nursery:
        return steps | await engine.compute.run(Priority.DECODE, on_compute, nursery=nursery)


def call_table(figure: CallFigure) -> str:
    """The figures as Markdown tables."""
    names = {
        "raw": "two blocking DEALER sockets (raw ZeroMQ)",
        "transport": "a parcel there and back through the transport on trio",
        "messages": "the same with an expert call and its reply, encoded, decoded and validated at both ends",
        "node": "from a node's compute thread to another's, which computes the expert, and back, with --no-express",
        "express": "the same by express, the default",
    }
    lines = ["| | round trip, us | of raw |", "|---|---|---|"]
    for kind, words in names.items():
        took_us = getattr(figure, kind)
        lines.append(f"| {words} | {took_us:.0f} | {took_us / figure.raw:.1f} |")
    lines += ["", "| one step alone | us |", "|---|---|"]
    return "\n".join(lines + [f"| {step} | {took_us:.1f} |" for step, took_us in figure.steps.items()])
