"""What the exchange comes to on recorded routing, with nothing but what a node sees of its own use."""

from dataclasses import replace

from meshmoe.bench.placement import KINDS, Cell, worlds
from meshmoe.bench.recorded import load_recorded, trace_of
from meshmoe.placement.cost import mesh_cost
from meshmoe.placement.policies.negotiated import Negotiated
from tests.placement.live.used import TOKENS_PER_S, UsedMesh


def test_experts_follow_use_and_a_change_of_all_use_with_one_correction_at_most():
    recorded = load_recorded("edge-12m")
    fit, _ = worlds(recorded, Cell("edge-12m", 1.35, "equal", "wifi"))
    own = [recorded.windows[kind] for kind in KINDS]
    mesh = UsedMesh(fit, 1)
    mesh.look()
    for part, windows in enumerate((own, [*own[1:], own[0]])):
        seen, unseen = [one[:14] for one in windows], [one[14:] for one in windows]
        mesh.serve(seen, 75)
        assert part < len(mesh.settlements) <= (2, 3)[part], "the first plan is made from few tokens; the second is not"

        def world(some):
            """As much of it as planners use."""
            place = int(fit.shape.expert_bytes.max())
            specs = [replace(spec, capacity_bytes=spec.capacity_bytes - place) for spec in fit.specs]
            traces = [trace_of(one, 32, prompt_tokens=0, tokens_per_s=float(TOKENS_PER_S)) for one in some]
            return replace(fit, specs=tuple(specs), traces=tuple(traces))

        mesh.world = world(unseen)
        fresh = mesh_cost(mesh.world, Negotiated().place(world(seen)))
        assert mesh.cost() <= 1.05 * fresh, "judged by texts that neither has seen"
