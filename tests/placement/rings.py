"""What exchange between neighbours costs on rings. `python -m tests.placement.rings [SEEDS]`.

Six nodes, links of 1 to 3 ms, random skewed demand (`tests.placement.worlds`), top-2, redundancy 1.3. Two layers of 8
experts are solved to the optimum by integer programming; six layers of 16 are compared with exchange between any two.
"""

import sys

import click
import numpy as np

from meshmoe.placement.cost import mesh_cost
from meshmoe.placement.policies import DanceMoE, Negotiated
from meshmoe.placement.policies.optimum import solve
from tests.placement.exchange.mesh import Mesh
from tests.placement.worlds import small_world


def ring(seed, layers, experts, tokens, nodes=6):
    rng = np.random.default_rng(seed)
    links = [(i, (i + 1) % nodes, float(rng.uniform(1, 3))) for i in range(nodes)]
    return small_world(
        seed, nodes=nodes, layers=layers, experts=experts, top_k=2, redundancy=1.3, tokens=tokens, links=links
    )


def costs(world, seed):
    """Of exchange between any two, of neighbours only, of neighbours first and then any, of machines, of DanceMoE."""
    near = Negotiated(neighbours_only=True).negotiate(world)
    mixed = Negotiated().negotiate(world, (near.holders, near.owner))
    mesh = Mesh(world, seed)
    assert mesh.run(900.0)
    placements = (Negotiated().place(world), near.holders, mixed.holders, mesh.holders(), DanceMoE().place(world))
    return [mesh_cost(world, holders) for holders in placements]


def main(seeds):
    click.echo("| experts | compared with | | any two | neighbours only | neighbours, then any | machines | DanceMoE |")
    click.echo("|---|---|---|---|---|---|---|---|")
    for layers, experts, tokens in ((2, 8, 30), (6, 16, 200)):
        ratios = []
        for seed in range(seeds):
            world = ring(seed, layers, experts, tokens)
            found = costs(world, seed)
            ratios.append(np.array(found) / (solve(world).cost if layers == 2 else found[0]))
        for what, row in (("mean", np.mean(ratios, axis=0)), ("worst", np.max(ratios, axis=0))):
            base = "optimum" if layers == 2 else "any two"
            click.echo(f"| {layers} x {experts} | {base} | {what} | {' | '.join(f'{x:.3f}' for x in row)} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 6)
