"""A status as a networkx graph: what ``meshmoe status --graph`` draws."""

from __future__ import annotations

import math

import networkx as nx

from meshmoe.core.units import format_duration, format_rate
from meshmoe.node.status import NodeStatus

_GONE = {"dead", "left"}


def status_graph(status: NodeStatus) -> nx.Graph[str]:
    """The mesh: nodes by capacity with the share of all experts that each holds, links with round trip and rate."""
    graph: nx.Graph[str] = nx.Graph()
    experts = status.model.experts if status.model is not None else 0
    for peer in status.peers:
        gone = peer.state in _GONE
        held = f"{peer.experts_held} experts" if not experts else f"{peer.experts_held / experts:.0%} of the experts"
        graph.add_node(
            peer.node,
            label=peer.node,
            detail=peer.state if gone else held if peer.state == "alive" else f"{held}, {peer.state}",
            size=peer.capacity_bytes,
            share=0.0 if gone or not experts else peer.experts_held / experts,
            faint=gone,
        )
    nearest_ms = min((link.rtt_ms for link in status.links if link.rtt_ms), default=1.0)
    for link in status.links:
        if not all(name in graph for name in link.nodes):
            continue
        words = []
        if link.rtt_ms is not None:
            words.append(format_duration(link.rtt_ms / 1000))
        if link.rate_bytes_per_s is not None:
            words.append(format_rate(link.rate_bytes_per_s))
        distance = 1 + math.log10(max(1.0, (link.rtt_ms or nearest_ms) / nearest_ms))
        graph.add_edge(*link.nodes, label=", ".join(words), distance=distance)
    return graph
