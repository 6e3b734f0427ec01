"""Planners that see recorded texts being written, second by second."""

import random

import numpy as np

from meshmoe.bench.passes import passes_of
from meshmoe.bench.placement import EXPERTS, KINDS, Cell, worlds
from meshmoe.bench.recorded import load_recorded
from meshmoe.placement.drafted import DraftDemand, draft_bill
from meshmoe.placement.live.demand import DemandKeeper
from meshmoe.placement.live.drafts import DraftsSeen
from meshmoe.placement.live.observer import Observer
from meshmoe.placement.seed import guardian_owners
from tests.placement.live.mesh import Mesh

DRAFT_S = 0.7e-3
"""To draft a token with the bundled model, as `meshmoe plan` reckons it."""

TOKENS_PER_S, TEXT_TOKENS = 15, 48
HALF_LIFE_S = 60.0


class UsedMesh(Mesh):
    """Its nodes write pieces of recorded windows."""

    def __init__(self, world, seed, drafts=lambda mesh, node: None):
        """With ``drafts(mesh, position)``, what a node measures of its passes."""
        super().__init__(world, seed)
        self._drafts = drafts
        self._rng = np.random.default_rng(seed)
        shape = world.shape.expert_bytes.shape
        self.observers = {
            name: Observer(DemandKeeper(shape[0], shape[1], HALF_LIFE_S, random.Random(i), 0.0), *shape)
            for i, name in enumerate(world.nodes)
        }
        self.settlements = []
        """When, and how many experts each moved."""
        self._followed = self.holders()

    def serve(self, windows, seconds):
        texts = {name: self._texts(one) for name, one in zip(self.world.nodes, windows, strict=True)}
        for _ in range(seconds):
            self.run(1.0)
            for name, observer in self.observers.items():
                for _ in range(TOKENS_PER_S):
                    observer.keeper.add(next(texts[name])[None], self.now, decode=True)
                place = self.world.nodes.index(name)
                found = observer.look(self.now, self._drafts(self, place), self._far_s(place))
                if found.news:
                    self.change(name, found.news)
                for event in found.events:
                    self.feed(name, event)
            if self.all_settled():
                holders = self.holders()
                self.settlements.append((round(self.now), int((holders & ~self._followed).sum())))
                self._followed = holders
                self.settled.clear()

    def _far_s(self, place):
        return float(np.median(np.delete(self.world.rtt_s[place], place)))

    def holders(self):
        """As planned; as the guardian rule says before that."""
        world = self.world
        owner = guardian_owners(world.shape, world.nodes, world.capacity_bytes)
        plans = [self.planners[name].machine for name in world.nodes]
        return np.stack([owner == i if plan is None else plan.plan.held for i, plan in enumerate(plans)])

    def _texts(self, windows):
        tokens = windows.reshape(-1, *windows.shape[2:]).astype(np.int16)
        while True:
            begin = int(self._rng.integers(0, len(tokens) - TEXT_TOKENS))
            yield from tokens[begin : begin + TEXT_TOKENS]


def plans_without_and_for_drafts(link, redundancy, seconds=75):
    """Holders without drafts and with them, and what a token costs each node then: `DraftBill` on unseen texts."""
    recorded = load_recorded("edge-12m")
    fit, judge = worlds(recorded, Cell("edge-12m", redundancy, "equal", link))
    windows = [recorded.windows[kind] for kind in KINDS]
    seen, unseen = [one[:14] for one in windows], [one[14:] for one in windows]
    demands, judges = ([DraftDemand(passes_of(one, EXPERTS), DRAFT_S) for one in part] for part in (seen, unseen))

    def drafts(mesh, node):
        found = draft_bill(fit, node, demands[node], mesh.holders())
        told, passes = 3000, round(3000 / found.tokens)
        hit = 1 - (1 - found.chance) / 0.75
        drafted = passes * found.length
        return DraftsSeen(passes, told, drafted, drafted, 0, told * found.mean_s, hit)

    results = []
    for how in (lambda mesh, node: None, drafts):
        mesh = UsedMesh(fit, 1, how)
        mesh.look()
        mesh.serve(seen, seconds)
        holders = mesh.holders()
        results.append((holders, [draft_bill(judge, node, judges[node], holders) for node in range(3)]))
    return results
