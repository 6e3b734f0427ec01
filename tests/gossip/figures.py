"""Bytes and convergence of gossip (with membership beneath it), measured on the virtual network.

Run ``.venv/bin/python -m tests.gossip.figures [seeds]`` for the tables of docs/decisions/gossip-entries.md, and
``.venv/bin/python -m tests.gossip.figures 1000`` for the mesh of 1,000 nodes (minutes, 3 GB).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from math import ceil, log10
from random import Random
from typing import NamedTuple

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.gossip import DEFAULT, Gossip, Holdings, Load, NodeInfo, Publish
from meshmoe.membership import Member, MemberAlive, MemberState, Received, Send, Tick
from tests.gossip.workload import BENCH, Model, Workload
from tests.membership.virtual import Path, VirtualNet, VirtualNode, bytes_per_s, sent_by

RUNS = ((2, 0.0, 30), (10, 0.0, 60), (10, 0.5, 60), (40, 0.0, 20), (100, 0.0, 10), (100, 0.5, 10))
"""Nodes, loss, seconds."""


class Traffic(NamedTuple):
    """Bytes sent a second."""

    mean: float
    most: float
    """Of the node that sent most."""
    by_tag: Counter[str]
    stale_s: float
    """Age of load reports (made once a second) in others' views, on average."""


def talking_mesh(
    n: int, seed: int, *, loss: float = 0.0, model: Model = BENCH, settle_s: float = 10.0, meet_s: float = 10.0
) -> tuple[VirtualNet, list[VirtualNode]]:
    """A mesh in which the workload has been running for a while."""
    net = VirtualNet(seed, gossip=DEFAULT)
    nodes = net.mesh(n, settle_s=meet_s)
    net.path = Path(loss=loss)
    Workload(net, nodes, model)
    net.run(settle_s)
    return net, nodes


def traffic(net: VirtualNet, nodes: list[VirtualNode], duration_s: float) -> Traffic:
    """Measure for ``duration_s``."""
    before, tags = sent_by(nodes), [Counter(node.sent_bytes) for node in nodes]
    net.run(duration_s)
    rates = bytes_per_s(nodes, before, duration_s)
    total: Counter[str] = Counter()
    for node, earlier in zip(nodes, tags, strict=True):
        total.update(node.sent_bytes - earlier)
    by_tag = Counter({tag: round(count / len(nodes) / duration_s) for tag, count in total.items()})
    behind = statistics.mean(lag(node, other) for node in nodes for other in nodes if node is not other)
    return Traffic(statistics.mean(rates), max(rates), by_tag, behind / 2)


def lag(node: VirtualNode, owner: VirtualNode) -> int:
    """How many writes of ``owner`` (two a second) have not arrived at ``node``."""
    assert node.gossip is not None
    assert owner.gossip is not None
    replica = node.gossip._store.replicas.get(owner.node)
    return owner.gossip._own.upto - (replica.upto if replica is not None else 0)


def spread(net: VirtualNet, *, urgent: bool, limit_s: float = 60.0) -> list[float]:
    """Publish one change at a random node; the times until each other node sees it, ascending."""
    owner = net.rng.choice(net.active())
    expert, layer = ExpertId(4000, net.rng.randrange(64)), 4000
    net.tell(owner, Publish((Holdings.of(layer, [expert.index]),), urgent=urgent))
    started_s, seen = net.now, {}

    def all_have_it() -> bool:
        for node in net.active():
            assert node.gossip is not None
            if node.node not in seen and owner.node in node.gossip.view.holders(expert):
                seen[node.node] = net.now - started_s
        return len(seen) == len(net.active())

    while not all_have_it() and net.now < started_s + limit_s:
        net.run(0.01)
    net.tell(owner, Publish((Holdings.of(layer, []),)))
    assert len(seen) == len(net.active()), f"{len(net.active()) - len(seen)} nodes never saw it"
    return sorted(seen.values())[1:]


def rounds_to_converge(n: int, seed: int) -> tuple[list[int], float]:
    """Rounds until one plain change is everywhere, in a mesh of gossip machines alone that all run in step.

    One round is one interval of every node; messages arrive within it. This is what protocols are compared by.

    Returns:
        How many nodes have the change after each round, and the bytes a node sent for it a round on average.
    """
    rng = Random(seed)
    names = [NodeId(f"node-{index:04d}") for index in range(n)]
    machines = {name: Gossip(DEFAULT, name, 1, Random(rng.random()), 0.0) for name in names}
    here = Endpoints("10.0.0.1", 7000)
    members = [Member(name, 1, 0, MemberState.ALIVE, here, 0.0) for name in names]
    for name, machine in machines.items():
        for member in members:
            if member.node != name:
                machine.handle(MemberAlive(member), 0.0)
        machine.handle(Publish((Load(1, 1),)), 0.0)
    # Everybody knows everything but the change: handed over directly, since 1,000 joins are not what is measured.
    deltas = [machine._own.delta(0, 10_000)[0] for machine in machines.values()]
    for name, machine in machines.items():
        for delta in deltas:
            if delta.node != name:
                machine._store.absorb(delta, 0.0)
                machine._pusher.needs_no_passing_on(machine._store.replicas[NodeId(delta.node)], 0)
        machine._pusher._own_once = machine._pusher._own_twice = machine._own.upto
        machine._agree_at_s = 1e9
        machine.handle(Tick(), 1.0)
    owner = names[rng.randrange(n)]
    machines[owner].handle(Publish((NodeInfo("serving", here, "changed"),)), 1.0)
    counts, sent_before = [], sum(machine.sent_bytes for machine in machines.values())
    now = 1.0
    while not counts or counts[-1] < n:
        now += DEFAULT.interval_s + 1e-6
        in_flight = [
            (name, effect)
            for name, machine in machines.items()
            for effect in machine.handle(Tick(), now)
            if isinstance(effect, Send)
        ]
        while in_flight:
            rng.shuffle(in_flight)
            in_flight = [
                (effect.peer, answer)
                for sender, effect in in_flight
                for answer in machines[effect.peer].handle(Received(sender, 1, effect.message), now)
                if isinstance(answer, Send)
            ]
        counts.append(sum(machine.view.nodes[owner].info is not None for machine in machines.values()))
    sent = sum(machine.sent_bytes for machine in machines.values()) - sent_before
    return counts, sent / n / len(counts)


def rounds_of_others(n: int, seed: int) -> dict[str, int]:
    """Rounds of two published schemes, reduced to whom they talk to, until all of ``n`` nodes have one change.

    memberlist pushes news to 3 random nodes an interval (200 ms), ``4 * ceil(log10(n + 1))`` times from each that has
    it. chitchat exchanges deltas both ways with 3 random nodes an interval (1 s).
    """
    rng = Random(seed)
    left, rounds = {0: 4 * ceil(log10(n + 1))}, {"memberlist": 0, "chitchat": 0}
    while len(left) < n and any(left.values()):
        rounds["memberlist"] += 1
        for node in [node for node, times in left.items() if times]:
            left[node] -= 1
            for peer in rng.sample(range(n), 3):
                left.setdefault(peer, 4 * ceil(log10(n + 1)))
    have = {0}
    while len(have) < n:
        rounds["chitchat"] += 1
        for node in rng.sample(range(n), n):
            for peer in rng.sample(range(n), 3):
                if node in have or peer in have:
                    have |= {node, peer}
    return rounds


def main() -> None:
    """Print the tables."""
    argument = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    out = sys.stdout.write
    started = time.monotonic()
    if argument >= 1000:
        counts, sent = rounds_to_converge(argument, 1)
        out(f"{argument} nodes: {len(counts)} rounds, nodes that have the change after each: {counts}, {sent:.0f} B\n")
        out(f"{time.monotonic() - started:.0f} s\n")
        return
    out("| nodes | loss | B/s a node: mean (most) | by message | load reports are old by |\n|---|---|---|---|---|\n")
    for n, loss, duration_s in (
        (2, 0.0, 30),
        (10, 0.0, 60),
        (10, 0.5, 60),
        (40, 0.0, 20),
        (100, 0.0, 10),
        (100, 0.5, 10),
    ):
        net, nodes = talking_mesh(n, 1, loss=loss)
        shown = traffic(net, nodes, duration_s)
        parts = ", ".join(f"{tag} {count}" for tag, count in shown.by_tag.most_common(4))
        out(f"| {n} | {loss:.0%} | {shown.mean:.0f} ({shown.most:.0f}) | {parts} | {shown.stale_s:.1f} s |\n")
        if n in (10, 100):
            for urgent in (True, False):
                times = [t for _ in range(5) for t in spread(net, urgent=urgent)]
                sys.stderr.write(
                    f"  {n} {loss:.0%} {'urgent' if urgent else 'plain'}: median {statistics.median(times):.3f} s, "
                    f"99 % {sorted(times)[int(len(times) * 0.99)]:.2f} s, last {max(times):.2f} s\n"
                )
    out("\n| nodes | rounds: median (most) |\n|---|---|\n")
    for n in (10, 100):
        rounds = [len(rounds_to_converge(n, seed)[0]) for seed in range(10 * argument)]
        out(f"| {n} | {statistics.median(rounds):.0f} ({max(rounds)}) |\n")
    for n in (10, 100, 1000):
        others = [rounds_of_others(n, seed) for seed in range(10 * argument)]
        for scheme in others[0]:
            median, most = statistics.median(run[scheme] for run in others), max(run[scheme] for run in others)
            out(f"| {n}, {scheme}'s scheme | {median:.0f} ({most}) |\n")
    out(f"\n{time.monotonic() - started:.0f} s\n")


if __name__ == "__main__":
    main()
