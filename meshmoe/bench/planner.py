"""Predicts what a mesh would do: a topology file, a checkpoint's sizes and recorded routing in, costs by policy out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from meshmoe.bench.passes import ForDrafts, passes_of
from meshmoe.bench.placement import CALL_S, FLOPS_PER_S, READ_BYTES_PER_S, TOKENS_PER_S
from meshmoe.bench.recorded import Recorded, halves, trace_of
from meshmoe.core.config import Profile, Topology, parse_capacity
from meshmoe.core.errors import ConfigError
from meshmoe.core.ids import NodeId
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.placement.cost import bill
from meshmoe.placement.drafted import DraftDemand, draft_bill
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
        drafts: The best number of drafts a pass; 0 where they do not pay.
        acceptance: Chance that a draft is right if all before it are.
        tokens_per_pass: With so many drafts.
        drafted_rounds, drafted_ms: Of a written token with drafts; drafting included, which is trunk and experts.
        held_bytes, capacity_bytes: Experts in memory, and what it offers.
    """

    node: str
    token_ms: float
    token_p99_ms: float
    prompt_ms: float
    rounds: float
    hit: float
    token_bytes: float
    drafts: float
    acceptance: float
    tokens_per_pass: float
    drafted_rounds: float
    drafted_ms: float
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
    drafts: float
    acceptance: float
    tokens_per_pass: float
    drafted_rounds: float
    drafted_ms: float
    nodes: list[NodeForecast]


class Worlds(NamedTuple):
    """What is planned for.

    Attributes:
        fit: The world to fit on.
        judge: The world to predict for.
        fit_drafts, judge_drafts: What each node's passes look like in them.
    """

    fit: World
    judge: World
    fit_drafts: list[DraftDemand]
    judge_drafts: list[DraftDemand]


def model_shape(checkpoint: Checkpoint) -> ModelShape:
    """Sizes of a checkpoint's experts and hidden states, from its headers alone."""
    layers = checkpoint.layout.layers
    sizes = np.zeros((len(layers), max(layer.n_experts for layer in layers)), np.int64)
    for layer in layers:
        sizes[layer.ordinal, : layer.n_experts] = layer.expert_bytes
    dtype = checkpoint.architecture.dtype(checkpoint.trunk_spec(key) for key in checkpoint.layout.trunk)
    return ModelShape(sizes, int(checkpoint.architecture.config.hidden_size) * dtype.itemsize)


def plan_worlds(
    topology: Topology,
    profiles: Mapping[str, Profile],
    shape: ModelShape,
    top_k: int | None,
    recorded: Recorded,
    trunk_bytes: int,
) -> Worlds:
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
    drafts: tuple[list[DraftDemand], list[DraftDemand]] = ([], [])
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
        read_bytes = trunk_bytes + sets.shape[3] * int(shape.expert_bytes.max(axis=1).sum())
        draft_s = read_bytes / (profile.memory_rate_bytes_per_s or READ_BYTES_PER_S)
        for half, traces, demands in zip(halves(windows), (fit, judge), drafts, strict=True):
            prompt_tokens = half.shape[1] // 2
            demands.append(DraftDemand(passes_of(half[:, prompt_tokens:], shape.experts), draft_s))
            traces.append(trace_of(half, shape.experts, prompt_tokens=prompt_tokens, tokens_per_s=TOKENS_PER_S))
    try:
        worlds = [build_world(shape, graph_of(topology), specs, traces) for traces in (fit, judge)]
    except ValueError as error:
        raise ConfigError(f"{topology.name}: {error}") from None
    return Worlds(worlds[0], worlds[1], *drafts)


def forecast(policies: Iterable[Policy], worlds: Worlds) -> list[tuple[Forecast, Holders]]:
    """What each policy would make of the mesh, without drafts and with them; ours last, before it ours for drafts.

    Raises:
        ConfigError: The nodes cannot hold the model together.
    """
    fit, judge = worlds.fit, worlds.judge
    *others, ours = policies
    result = []
    for policy in (*others, ForDrafts(worlds.fit_drafts), ours):
        try:
            holders = policy.place(fit)
        except ValueError as error:
            lacking = fit.shape.total_bytes - int(fit.capacity_bytes.sum())
            more = f": {lacking} bytes are lacking" if lacking > 0 else ""
            raise ConfigError(f"{policy.name}: {error}{more}") from None
        nodes = []
        for number, (name, trace) in enumerate(zip(judge.nodes, judge.traces, strict=True)):
            decode, prefill = (bill(judge, number, steps, holders) for steps in (trace.decode, trace.prefill))
            drafted = draft_bill(judge, number, worlds.judge_drafts[number], holders)
            nodes.append(
                NodeForecast(
                    node=name,
                    token_ms=1e3 * decode.mean_s,
                    token_p99_ms=1e3 * decode.p99_s,
                    prompt_ms=1e3 * prefill.mean_s * float(trace.prefill.tokens.mean()),
                    rounds=decode.rounds,
                    hit=decode.hit,
                    token_bytes=decode.wire_bytes,
                    drafts=drafted.length,
                    acceptance=drafted.chance,
                    tokens_per_pass=drafted.tokens,
                    drafted_rounds=drafted.rounds,
                    drafted_ms=1e3 * drafted.mean_s,
                    held_bytes=int(judge.shape.expert_bytes[holders[number]].sum()),
                    capacity_bytes=judge.specs[number].capacity_bytes,
                )
            )
        means = {
            key: float(np.mean([getattr(node, key) for node in nodes]))
            for key in Forecast.__struct_fields__
            if key not in ("policy", "nodes")
        }
        result.append((Forecast(policy.name, nodes=nodes, **means), holders))
    return result
