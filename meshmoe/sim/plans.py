"""Plans of placement in a simulated mesh: custody has to bear any, old ones and ones that do not fit together.

The exchange itself is not simulated here (`tests/placement/live` does that). What it may come to: every expert gets an
owner, some get copies, all within the nodes' budgets with a place kept free, and nodes hear of a new plan or do not.
"""

from __future__ import annotations

from collections import Counter
from random import Random

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody import Planned, Want
from meshmoe.sim.node import SimNode
from meshmoe.sim.world import World

SHARE = 0.2
"""Of events in a seed with plans: a new plan."""

HEARS = 0.8
"""Chance that a node hears of a new plan."""

FORGETS = 0.1
"""Share of new plans that are none: nodes go back to the guardian rule."""


class Plans:
    """Deals plans to the nodes of a world."""

    def __init__(self, world: World, rng: Random) -> None:
        self.counts: Counter[str] = Counter()
        self._world = world
        self._rng = rng
        self._dealt_to: frozenset[tuple[NodeId, int]] = frozenset()

    def maybe_deal(self) -> None:
        """Something happens: now and then, a new plan."""
        if self._rng.random() < SHARE:
            nodes = self._serving()
            some = [node for node in nodes if self._rng.random() < HEARS]
            self._deal(nodes, some, none=self._rng.random() < FORGETS)

    def keep_up(self) -> None:
        """After all faults: whenever nodes have come or gone, everybody hears of a plan for those that are there."""
        nodes = self._serving()
        lives = frozenset((node.name, node.generation) for node in nodes)
        if lives != self._dealt_to:
            self._dealt_to = lives
            self._world.last_change_s = self._world.clock.now
            self._deal(nodes, nodes, none=False)

    def _serving(self) -> list[SimNode]:
        living = self._world.living()
        return [node for node in living if node.phase == "serving" and node.custody is not None]

    def _deal(self, nodes: list[SimNode], to: list[SimNode], *, none: bool) -> None:
        holders = {} if none else self._plan(nodes)
        self.counts["plans"] += 1
        self._world.note(f"a new plan reaches {', '.join(node.name for node in to) or 'nobody'}")
        for node in to:
            assert node.custody is not None
            node.custody.feed(Planned(holders))
            node.custody.feed(Want(tuple(expert for expert, named in holders.items() if node.name in named)))

    def _plan(self, nodes: list[SimNode]) -> dict[ExpertId, tuple[NodeId, ...]]:
        """Random owners and copies, as far as there is room."""
        rng, sizes = self._rng, self._world.expert_bytes
        place_bytes, total_bytes = max(sizes.values()), sum(sizes.values())
        room = {
            node.name: node.capacity_bytes - (place_bytes if node.capacity_bytes < total_bytes else 0) for node in nodes
        }
        holders: dict[ExpertId, tuple[NodeId, ...]] = {}
        for copies in (1, rng.choice((1, 2, 3))):
            experts = sorted(sizes)
            rng.shuffle(experts)
            for expert in experts:
                named = holders.get(expert, ())
                able = [name for name in room if room[name] >= sizes[expert] and name not in named]
                if able and len(named) < copies and (not named or rng.random() < 0.6):
                    name = rng.choice(able)
                    room[name] -= sizes[expert]
                    holders[expert] = (*named, name)
        return holders
