"""What the exchange comes to on recorded routing, with nothing but what a node sees of its own use."""

import random
from dataclasses import replace

import numpy as np

from meshmoe.bench.placement import KINDS, Cell, worlds
from meshmoe.bench.recorded import load_recorded, trace_of
from meshmoe.placement.cost import mesh_cost
from meshmoe.placement.live.demand import DemandKeeper
from meshmoe.placement.live.observer import Observer
from meshmoe.placement.policies.negotiated import Negotiated
from tests.placement.live.mesh import Mesh

TOKENS_PER_S, TEXT_TOKENS = 15, 48
HALF_LIFE_S = 60.0


class UsedMesh(Mesh):
    """Its nodes write pieces of recorded windows."""

    def __init__(self, world, seed):
        super().__init__(world, seed)
        self._rng = np.random.default_rng(seed)
        shape = world.shape.expert_bytes.shape
        self.observers = {
            name: Observer(DemandKeeper(shape[0], shape[1], HALF_LIFE_S, random.Random(i), 0.0), *shape)
            for i, name in enumerate(world.nodes)
        }
        self.times_settled = 0

    def serve(self, windows, seconds):
        texts = {name: self._texts(one) for name, one in zip(self.world.nodes, windows, strict=True)}
        for _ in range(seconds):
            self.run(1.0)
            for name, observer in self.observers.items():
                for _ in range(TOKENS_PER_S):
                    observer.keeper.add(next(texts[name])[None], self.now, decode=True)
                found = observer.look(self.now)
                if found.news:
                    self.change(name, found.news)
                for event in found.events:
                    self.feed(name, event)
            if self.all_settled():
                self.times_settled += 1
                self.settled.clear()

    def _texts(self, windows):
        tokens = windows.reshape(-1, *windows.shape[2:]).astype(np.int16)
        while True:
            begin = int(self._rng.integers(0, len(tokens) - TEXT_TOKENS))
            yield from tokens[begin : begin + TEXT_TOKENS]


def test_experts_follow_use_and_a_change_of_all_use_with_one_correction_each():
    recorded = load_recorded("edge-12m")
    fit, _ = worlds(recorded, Cell("edge-12m", 1.35, "equal", "wifi"))
    own = [recorded.windows[kind] for kind in KINDS]
    mesh = UsedMesh(fit, 1)
    mesh.look()
    for part, windows in enumerate((own, [*own[1:], own[0]])):
        seen, unseen = [one[:14] for one in windows], [one[14:] for one in windows]
        mesh.serve(seen, 75)
        assert mesh.times_settled == part + 1

        def world(some):
            """As much of it as planners use."""
            place = int(fit.shape.expert_bytes.max())
            specs = [replace(spec, capacity_bytes=spec.capacity_bytes - place) for spec in fit.specs]
            traces = [trace_of(one, 32, prompt_tokens=0, tokens_per_s=float(TOKENS_PER_S)) for one in some]
            return replace(fit, specs=tuple(specs), traces=tuple(traces))

        mesh.world = world(unseen)
        fresh = mesh_cost(mesh.world, Negotiated().place(world(seen)))
        assert mesh.cost() <= 1.05 * fresh, "judged by texts that neither has seen"
