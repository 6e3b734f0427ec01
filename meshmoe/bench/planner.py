"""Predicts what a mesh would do: a topology file, a checkpoint's sizes and recorded routing in, costs by policy out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from meshmoe.bench.placement import CALL_S, FLOPS_PER_S, READ_BYTES_PER_S, TOKENS_PER_S
from meshmoe.bench.recorded import Recorded, halves, trace_of
from meshmoe.core.config import Profile, Topology, parse_capacity
from meshmoe.core.errors import ConfigError
from meshmoe.core.ids import NodeId
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.placement.cost import bill
from meshmoe.placement.policies import Policy
from meshmoe.placement.trace import Trace
from meshmoe.placement.world import Holders, ModelShape, NodeSpec, World, build_world, graph_of


class NodeForecast(msgspec.Struct, frozen=True):
    """A node under a policy.

    Attributes:
        node: Its name.
        token_ms, token_p99_ms: Time in experts of a generated token.
        prompt_ms: Of a prompt of half a recorded window.
        rounds, hit, token_bytes: Of a generated token.
        held_bytes, capacity_bytes: Experts in memory, and what it offers.
    """

    node: str
    token_ms: float
    token_p99_ms: float
    prompt_ms: float
    rounds: float
    hit: float
    token_bytes: float
    held_bytes: int
    capacity_bytes: int


class Forecast(msgspec.Struct, frozen=True):
    """A policy's prediction; the means are over nodes."""

    policy: str
    token_ms: float
    token_p99_ms: float
    prompt_ms: float
    rounds: float
    hit: float
    token_bytes: float
    nodes: list[NodeForecast]


def model_shape(checkpoint: Checkpoint) -> ModelShape:
    """Sizes of a checkpoint's experts and hidden states, from its headers alone."""
    layers = checkpoint.layout.layers
    sizes = np.zeros((len(layers), max(layer.n_experts for layer in layers)), np.int64)
    for layer in layers:
        sizes[layer.ordinal, : layer.n_experts] = layer.expert_bytes
    dtype = checkpoint.architecture.dtype(checkpoint.trunk_spec(key) for key in checkpoint.layout.trunk)
    return ModelShape(sizes, int(checkpoint.architecture.config.hidden_size) * dtype.itemsize)


def plan_worlds(
    topology: Topology, profiles: Mapping[str, Profile], shape: ModelShape, top_k: int | None, recorded: Recorded
) -> tuple[World, World]:
    """The world to fit on, and the world to predict for: the two halves of the recorded windows.

    A node is asked for its domain's text, or for all kinds of text if it has none that was recorded.

    Raises:
        ConfigError: A node states no capacity, nodes do not reach each other, or the routing is of another model.
    """
    sets = next(iter(recorded.windows.values()))
    if (recorded.layers, sets.shape[3]) != (
        shape.layers,
        top_k or sets.shape[3],
    ) or recorded.experts_min > shape.experts:
        raise ConfigError(
            f"--trace {recorded.name} is of a model with {recorded.layers} layers and top-{sets.shape[3]} of "
            f"{recorded.experts_min} experts; this one has {shape.layers} layers and top-{top_k} of {shape.experts}"
        )
    specs: dict[NodeId, NodeSpec] = {}
    fit: list[Trace] = []
    judge: list[Trace] = []
    expert_bytes = int(shape.expert_bytes.max())
    for name, node in topology.nodes.items():
        profile = profiles[node.profile] if node.profile is not None else Profile()
        capacity = parse_capacity(node.capacity) if node.capacity is not None else profile.parsed_capacity()
        if capacity is None:
            raise ConfigError(f"{topology.name}: node {name} has no capacity: add one, or a profile that has")
        specs[name] = NodeSpec(
            capacity_bytes=min(shape.total_bytes, capacity.resolve(shape.total_bytes)),
            call_s=CALL_S,
            expert_s=expert_bytes / (profile.memory_rate_bytes_per_s or READ_BYTES_PER_S),
            row_s=expert_bytes / FLOPS_PER_S,  # two operations a parameter of two bytes
        )
        kinds = [node.domain] if node.domain in recorded.windows else list(recorded.windows)
        windows = np.concatenate([recorded.windows[kind][: -(-28 // len(kinds))] for kind in kinds if kind is not None])
        windows = windows[np.random.default_rng(0).permutation(len(windows))] if len(kinds) > 1 else windows
        for half, traces in zip(halves(windows), (fit, judge), strict=True):
            prompt_tokens = half.shape[1] // 2
            traces.append(trace_of(half, shape.experts, prompt_tokens=prompt_tokens, tokens_per_s=TOKENS_PER_S))
    try:
        worlds = [build_world(shape, graph_of(topology), specs, traces) for traces in (fit, judge)]
    except ValueError as error:
        raise ConfigError(f"{topology.name}: {error}") from None
    return worlds[0], worlds[1]


def forecast(policies: Iterable[Policy], fit: World, judge: World) -> list[tuple[Forecast, Holders]]:
    """What each policy would make of the mesh.

    Raises:
        ConfigError: The nodes cannot hold the model together.
    """
    result = []
    for policy in policies:
        try:
            holders = policy.place(fit)
        except ValueError as error:
            lacking = fit.shape.total_bytes - int(fit.capacity_bytes.sum())
            more = f": {lacking} bytes are lacking" if lacking > 0 else ""
            raise ConfigError(f"{policy.name}: {error}{more}") from None
        nodes = []
        for number, (name, trace) in enumerate(zip(judge.nodes, judge.traces, strict=True)):
            decode, prefill = (bill(judge, number, steps, holders) for steps in (trace.decode, trace.prefill))
            nodes.append(
                NodeForecast(
                    node=name,
                    token_ms=1e3 * decode.mean_s,
                    token_p99_ms=1e3 * decode.p99_s,
                    prompt_ms=1e3 * prefill.mean_s * float(trace.prefill.tokens.mean()),
                    rounds=decode.rounds,
                    hit=decode.hit,
                    token_bytes=decode.wire_bytes,
                    held_bytes=int(judge.shape.expert_bytes[holders[number]].sum()),
                    capacity_bytes=judge.specs[number].capacity_bytes,
                )
            )
        means = {
            key: float(np.mean([getattr(node, key) for node in nodes]))
            for key in ("token_ms", "token_p99_ms", "prompt_ms", "rounds", "hit", "token_bytes")
        }
        result.append((Forecast(policy.name, nodes=nodes, **means), holders))
    return result
