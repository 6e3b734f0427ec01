"""How long the exchange takes to become quiet, and to decide. `python -m tests.placement.figures [NODES ...]`.

Random skewed demand (`tests.placement.worlds`), 8 layers of 32 experts (12 of 128 beyond 64 nodes, else they would hold
one or two each), top-4, redundancy 1.3, 100 routing sets a node,
10 % noise on every demand that gossip carries, 50 ms links, gossip every half second. A round is as long as every node
takes to propose once.
"""

import sys
import time
from collections import defaultdict

import numpy as np

from meshmoe.placement.cost import mesh_cost
from meshmoe.placement.exchange import ExchangeConfig, ExchangeProposal, Heard, SendTo, Wake
from meshmoe.placement.exchange.messages import BYSTANDERS_MAX
from meshmoe.placement.policies import Uniform
from tests.placement.exchange.mesh import Mesh
from tests.placement.worlds import small_world


def settle(nodes, seed=0, limit_s=900.0, asked_max=16):
    """Cold start, then a shift of a quarter of the nodes' demand to another node's."""
    layers, experts = (8, 32) if nodes <= 64 else (12, 128)
    world = small_world(seed, nodes=nodes, layers=layers, experts=experts, top_k=4, tokens=100, redundancy=1.3)
    config = ExchangeConfig(gain_min=0.005, asked_max=asked_max)
    mesh = Mesh(world, seed, noise=0.1, config=config, costs=False)
    experts = world.shape.exists.sum()
    even = mesh_cost(world, Uniform().place(world))
    for phase in ("cold start", "quarter shifted"):
        begun_s, changes, sent, started = mesh.now, len(mesh.changes), len(mesh.sent), time.process_time()
        quiet = mesh.run(begun_s + limit_s)
        share = mesh_cost(mesh.world, mesh.holders()) / even
        cpu_s = time.process_time() - started
        proposals = [m for *_, m in mesh.sent[sent:] if isinstance(m, ExchangeProposal)]
        moves = sum(len(change.adds) for _, _, change in mesh.changes[changes:])
        last_s = max((t for t, _, _ in mesh.changes[changes:]), default=begun_s)
        print(
            f"| {nodes} | {phase} | {'yes' if quiet else 'no'} | {(last_s - begun_s) / config.pause_s:.0f} | "
            f"{len(proposals) / nodes:.1f} | {moves / experts:.2f} | {share:.3f} | "
            f"{1e3 * cpu_s / max(1, len(proposals)):.0f} ms | {(mesh.owners().sum(axis=0) == 1).all()} |",
            flush=True,
        )
        traces = list(world.traces)
        moved = range(max(2, nodes // 4))
        for i in moved:
            traces[i] = world.traces[(i + 1) % len(moved)]
        mesh.world = type(world)(
            world.shape, world.nodes, world.specs, tuple(traces), world.rtt_s, world.byte_s, world.near
        )
        mesh.demand_changed(traces)


def decide(nodes=64, layers=48, experts=128, some=12):
    """CPU time of each thought in a large mesh: medians over a few pairs, after one that compiles."""
    world = small_world(0, nodes=nodes, layers=layers, experts=experts, top_k=8, tokens=64, redundancy=1.3)
    mesh = Mesh(world, 0)
    times = defaultdict(list)

    def think(name, event):
        started = time.process_time()
        effects = mesh.machines[name].handle(event, mesh.now)
        spent_ms = 1e3 * (time.process_time() - started)
        return [effect for effect in effects if isinstance(effect, SendTo)], spent_ms

    for name in world.nodes:
        if len(times["proposal with a sketch"]) > some:
            break
        for other in [other for other in world.nodes if other != name][-BYSTANDERS_MAX:]:
            mesh.machines[name]._stand.hear_sketch(other, mesh.machines[other]._stand.sketch(1))
        for _ in range(4):
            mesh.now += 1e4
            sent, spent_ms = think(name, Wake())
            if not sent:
                times["choice of copies"].append(spent_ms)
                mesh.gossip()
                continue
            (proposal,) = sent
            kind = " with a sketch" if proposal.message.sketch_known else ", no sketch"
            times[f"proposal{kind}"].append(spent_ms)
            (answer,), spent_ms = think(proposal.peer, Heard(name, proposal.message))
            times[f"answer{kind}"].append(spent_ms)
            verdicts, spent_ms = think(name, Heard(proposal.peer, answer.message))
            if answer.message.reply == "accepted":
                times[f"settlement{kind}"].append(spent_ms)
            for verdict in verdicts:
                think(proposal.peer, Heard(name, verdict.message))
            mesh.gossip()
    print(f"\n{nodes} nodes, {layers * experts} experts; ms of CPU, medians")
    medians = {what: np.median(spent[1:]) for what, spent in times.items()}
    for what, median in medians.items():
        print(f"- {what}: {median:.1f} ({len(times[what]) - 1})")
    total = sum(medians[f"{what} with a sketch"] for what in ("proposal", "answer", "settlement"))
    print(f"- a round, in which a node proposes, answers and settles: {total:.1f}")


if __name__ == "__main__":
    print("| nodes | | quiet | rounds | proposals a node | moves an expert | cost / uniform | CPU | one owner |")
    print("|---|---|---|---|---|---|---|---|---|")
    for count in [int(word) for word in sys.argv[1:] if int(word)] if sys.argv[1:] else [3, 16]:
        settle(count)
    decide()
