"""Several whole nodes in one process: real sockets on loopback, real engines, one trio loop."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import torch
import trio

from meshmoe.core.config import Capacity
from meshmoe.core.ids import NodeId
from meshmoe.core.token import parse_peer
from meshmoe.engine.engine import open_engine
from meshmoe.engine.model import load_moe_model
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.request import FinishEvent, GenerationRequest, SamplingParams, TokenEvent
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.loading import load_expert
from meshmoe.node.node import Node
from meshmoe.node.settings import NodeSettings

torch.set_num_threads(1)

READY_TIMEOUT_S = 300.0
"""The first node of a machine compiles kernels, which takes a minute where others compute beside it."""

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=0)
SEEDED = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=0, temperature=0.9, top_p=0.95, seed=7)


def settings(directory: Path, name: str, model: Path | None, share: float, **changes) -> NodeSettings:
    given = {
        "node": NodeId(name),
        "listen": ("127.0.0.1", 0),
        "model": model,
        "capacity": Capacity(share=share),
        "socket_path": directory / f"{name}.sock",
        "state_dir": directory / name,
        "cache_dir": directory / "cache",
    }
    return NodeSettings(**{**given, **changes})


class TestMesh:
    """Nodes that live in a nursery; each joins through the first."""

    __test__ = False

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.directory = directory
        self.nodes: list[Node] = []
        self._nursery = nursery

    async def add(self, name: str, model: Path | None, share: float, **changes) -> Node:
        """Start a node and wait until it serves (whether or not the mesh covers the model)."""
        if self.nodes and "peers" not in changes:
            changes["peers"] = (parse_peer(self.nodes[0].join_word()),)
        node = Node(settings(self.directory, name, model, share, **changes))
        self._nursery.start_soon(node.run, name=name)
        with trio.fail_after(READY_TIMEOUT_S):
            await node.ready.wait()
        self.nodes.append(node)
        return node

    async def settle(self, *nodes: Node) -> None:
        """Wait until all are ready, nothing moves, every expert has a custodian, and all see the same holders."""
        nodes = nodes or tuple(self.nodes)
        with trio.fail_after(READY_TIMEOUT_S):
            while True:
                digests = {node.parts.gossip.view.holder_digest() for node in nodes}
                machines = [node.parts.custody.machine for node in nodes]
                kept = {expert for machine in machines for expert in machine.custody}
                held = kept.issuperset(nodes[0].model.experts) and not any(m.intakes or m.migrations for m in machines)
                ready = all(node.status().serving.ready for node in nodes)
                if ready and held and len(digests) == 1:
                    return
                await trio.sleep(0.05)


@asynccontextmanager
async def open_test_mesh(directory: Path) -> AsyncIterator[TestMesh]:
    async with trio.open_nursery() as nursery:
        mesh = TestMesh(directory, nursery)
        yield mesh
        for node in mesh.nodes:
            node.stop()
        with trio.move_on_after(10) as scope:
            while nursery.child_tasks:
                await trio.sleep(0.02)
        assert not scope.cancelled_caught, "a node did not stop"


def random_shares(count: int, seed: int) -> list[float]:
    """Unequal capacities that together hold the model with something to spare."""
    rng = random.Random(seed)
    weights = [rng.uniform(0.5, 1.5) for _ in range(count)]
    total = 1.0 if count == 1 else rng.uniform(1.15, 1.5)
    return [min(1.0, weight / sum(weights) * total + 0.02) for weight in weights]


async def written(node, prompt: tuple[int, ...], sampling: SamplingParams) -> list[tuple[int, float]]:
    """Token ids with their log probabilities: equal only if the logits were, to the last bit."""
    out = []
    async with node.generate(GenerationRequest(prompt_ids=prompt, sampling=sampling)) as events:
        async for event in events:
            if isinstance(event, TokenEvent):
                out.append((event.token_id, event.logprob))
            else:
                assert isinstance(event, FinishEvent)
    return out


async def written_alone(directory: Path, prompts, samplings) -> list[list[tuple[int, float]]]:
    """What one node with everything resident writes, without any mesh."""
    checkpoint = Checkpoint.open(directory)
    model = load_moe_model(checkpoint)
    pool = ExpertPool(1 << 40)
    for expert in model.experts:
        pool.add(expert, load_expert(checkpoint, expert, model.dtype))
    async with open_engine(model, pool) as engine:
        return [await written(engine, prompt, sampling) for prompt in prompts for sampling in samplings]
