"""What a placement is decided on: the model's sizes, the nodes, their links, and what each node is asked for.

Links are a networkx graph. Two nodes without a link reach each other over several hops: relays store and forward a
message, so a path's round trips add up, and so do its seconds a byte. Of all paths within the hop limit the fastest
for a message of typical size is taken (Bellman-Ford, one min-plus product a hop).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from meshmoe.core.config import Topology
from meshmoe.core.ids import NodeId
from meshmoe.placement.trace import Floats, Ints, Trace

Holders = NDArray[np.bool_]
"""Who holds what: ``[nodes, layers, experts]``."""

HOPS_MAX = 3
"""Links on a path at most: each relay costs a round trip, which is more than most placements save."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model, as far as placement cares.

    Attributes:
        expert_bytes: ``[layers, experts]``, what each expert takes; 0 where a layer has fewer experts than others.
        row_bytes: One hidden state on the wire; it goes out, and an output of the same size comes back.
    """

    expert_bytes: Ints
    row_bytes: int

    @property
    def layers(self) -> int:
        """Layers with routed experts."""
        return int(self.expert_bytes.shape[0])

    @property
    def experts(self) -> int:
        """Experts in the largest layer."""
        return int(self.expert_bytes.shape[1])

    @property
    def exists(self) -> NDArray[np.bool_]:
        """``[layers, experts]``."""
        present: NDArray[np.bool_] = self.expert_bytes > 0
        return present

    @property
    def total_bytes(self) -> int:
        """Of all experts."""
        return int(self.expert_bytes.sum())


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A node's means.

    Attributes:
        capacity_bytes: For experts.
        call_s: What a remote call costs beyond the link: messages handled at both ends.
        queue_s: How long a call waits at this node.
        expert_s: To compute one expert for one row (reading its weights).
        row_s: For each row through an expert.
    """

    capacity_bytes: int
    call_s: float = 0.0
    queue_s: float = 0.0
    expert_s: float = 0.0
    row_s: float = 0.0


@dataclass(frozen=True)
class World:
    """Everything a policy may look at. Arrays are indexed by the position of a node in ``nodes``.

    Attributes:
        shape: The model.
        nodes: Names, in order.
        specs: A node's means.
        traces: A node's demand.
        rtt_s: ``[nodes, nodes]``, of a small message along the path; infinite where there is none.
        byte_s: ``[nodes, nodes]``, seconds a byte in one direction along the path.
        near: ``[nodes, nodes]``, whether there is a direct link.
    """

    shape: ModelShape
    nodes: tuple[NodeId, ...]
    specs: tuple[NodeSpec, ...]
    traces: tuple[Trace, ...]
    rtt_s: Floats
    byte_s: Floats
    near: NDArray[np.bool_]

    @property
    def capacity_bytes(self) -> Ints:
        """``[nodes]``."""
        return np.array([spec.capacity_bytes for spec in self.specs], dtype=np.int64)

    def call_s(self, rows: float) -> Floats:
        """``[caller, holder]``: seconds until ``rows`` rows of one expert are back, without the bytes' own time."""
        there = np.array([spec.call_s + spec.queue_s + spec.expert_s + rows * spec.row_s for spec in self.specs])
        total: Floats = self.rtt_s + there[None, :]
        return total

    def check(self, holders: Holders) -> None:
        """Assert that a placement is one.

        Raises:
            ValueError: An expert has no holder, a node holds more than it may, or an expert that does not exist.
        """
        if (holders & ~self.shape.exists).any():
            raise ValueError("an expert is held that the model does not have")
        if not (holders.any(axis=0) | ~self.shape.exists).all():
            raise ValueError("an expert has no holder")
        taken = np.tensordot(holders, self.shape.expert_bytes, axes=([1, 2], [0, 1]))
        if (taken > self.capacity_bytes).any():
            raise ValueError("a node holds more than its capacity")


def graph_of(topology: Topology) -> nx.Graph[NodeId]:
    """The graph of a topology file, with ``rtt_s`` and ``rate_bytes_per_s`` on its edges.

    Half of a link's greatest jitter, each way, is its mean: a round trip takes that much longer.
    """
    graph: nx.Graph[NodeId] = nx.Graph()
    graph.add_nodes_from(topology.nodes)
    for (a, b), link in topology.links.items():
        graph.add_edge(a, b, rtt_s=link.rtt_s + link.jitter_s, rate_bytes_per_s=link.rate_bytes_per_s)
    return graph


def build_world(
    shape: ModelShape, graph: nx.Graph[NodeId], specs: Mapping[NodeId, NodeSpec], traces: Sequence[Trace]
) -> World:
    """Put a world together.

    Args:
        shape: The model.
        graph: Links; each edge has ``rtt_s`` and ``rate_bytes_per_s``.
        specs: In the order that ``nodes`` and all arrays will have.
        traces: In the same order.

    Raises:
        ValueError: A pair of nodes has no path within `HOPS_MAX` links.
    """
    names = tuple(specs)
    position = {name: i for i, name in enumerate(names)}
    rtt_s = np.full((len(names), len(names)), np.inf)
    byte_s = np.full_like(rtt_s, np.inf)
    np.fill_diagonal(rtt_s, 0.0)
    np.fill_diagonal(byte_s, 0.0)
    for a, b, link in graph.edges(data=True):
        pair = ([position[a], position[b]], [position[b], position[a]])
        rtt_s[pair], byte_s[pair] = link["rtt_s"], 1.0 / link["rate_bytes_per_s"]
    near = np.isfinite(rtt_s) & ~np.eye(len(names), dtype=bool)
    rtt_s, byte_s = _paths(rtt_s, byte_s, 2 * shape.row_bytes)
    if not np.isfinite(rtt_s).all():
        one, two = (int(i[0]) for i in np.nonzero(~np.isfinite(rtt_s)))
        raise ValueError(f"{names[one]} does not reach {names[two]} within {HOPS_MAX} links")
    return World(shape, names, tuple(specs.values()), tuple(traces), rtt_s, byte_s, near)


def _paths(rtt_s: Floats, byte_s: Floats, message_bytes: int) -> tuple[Floats, Floats]:
    one_rtt_s, one_byte_s = rtt_s, byte_s
    for _ in range(HOPS_MAX - 1):
        via = (rtt_s + message_bytes * byte_s)[:, :, None] + (one_rtt_s + message_bytes * one_byte_s)[None]
        relay = via.argmin(axis=1)
        a, b = np.indices(relay.shape)
        rtt_s = rtt_s[a, relay] + one_rtt_s[relay, b]
        byte_s = byte_s[a, relay] + one_byte_s[relay, b]
    return rtt_s, byte_s
