"""What the soak test knows for certain, since all of its peers live in one process: who lives, and what went wrong."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import NodeId
from meshmoe.transport.base import Transport

VIOLATIONS_KEPT = 20
LATENCIES_KEPT = 20_000


@dataclass
class World:
    """Shared by all peers.

    Attributes:
        addresses: Where each peer listens, in every life.
        generation: Of each peer's current life; no entry while it is down.
        transports: Of each peer's current life.
        acquainted: For each living peer, those with whom both directions are known to work.
        breaks_before: By sending node, its generation, epoch and receiver, `breaks` when that stream began.
        counts: Whatever is worth a figure in the report.
        latencies_s: Of answered requests, a sample.
        violations: Lines about what must not happen; the first few are kept, all are counted.
        paused: While true, peers start nothing new, so that figures can be taken at rest.
        busy: Requests that are under way.
    """

    addresses: dict[NodeId, Endpoints]
    generation: dict[NodeId, int] = field(default_factory=dict)
    transports: dict[NodeId, Transport] = field(default_factory=dict)
    acquainted: dict[NodeId, set[NodeId]] = field(default_factory=dict)
    breaks_before: dict[tuple[NodeId, int, int, NodeId], int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    paused: bool = False
    busy: int = 0

    def lives(self, node: NodeId, generation: int) -> bool:
        """Whether that life of ``node`` goes on."""
        return self.generation.get(node) == generation

    def breaks(self, a: NodeId, b: NodeId) -> int:
        """How many connections between two nodes have broken, either way, in their present lives."""
        ends = ((a, b), (b, a))
        return sum(self.transports[x].stats(y).lost_connections for x, y in ends if x in self.transports)

    def note_latency(self, latency_s: float) -> None:
        """Keep a uniform sample (reservoir sampling), so that the test's own memory does not grow."""
        seen = self.counts["requests answered"]
        if len(self.latencies_s) < LATENCIES_KEPT:
            self.latencies_s.append(latency_s)
        elif (place := random.randrange(seen)) < LATENCIES_KEPT:
            self.latencies_s[place] = latency_s

    @property
    def settled(self) -> bool:
        """Whether everybody lives and is acquainted with everybody else."""
        others = len(self.addresses) - 1
        return all(len(self.acquainted.get(node, ())) == others for node in self.addresses)

    def violation(self, line: str) -> None:
        """Something happened that must not."""
        self.counts["violations"] += 1
        if len(self.violations) < VIOLATIONS_KEPT:
            self.violations.append(line)
