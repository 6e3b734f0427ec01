"""What happens to a simulated mesh in the safety phase of one seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody import Give, Want
from meshmoe.placement.guardian import guardian_plan
from meshmoe.sim.disk import Disk
from meshmoe.sim.node import SimNode
from meshmoe.sim.plans import Plans
from meshmoe.sim.rates import FaultRates
from meshmoe.sim.world import World

LOOK_S = 0.25
"""How often the checker looks at everything."""

STAYING_MIN = 2
"""So many always run and mean to stay. When all have gone at once nobody remembers the mesh, and who meets whom again
is decided by the addresses that people give to ``--peer``, not by the machines."""


class Chaos:
    """Does things to a world, by chance."""

    def __init__(self, world: World, rates: FaultRates, rng: Random) -> None:
        """Make one.

        Args:
            world: To whom.
            rates: How often.
            rng: Decides what and when; not the world's own, so that both can be changed apart.
        """
        self.counts: Counter[str] = Counter()
        self.plans: Plans | None = None
        """Of placement, in seeds that have any."""
        self.down: dict[NodeId, Disk] = {}
        self._world = world
        self._rates = rates
        self._rng = rng
        self._deeds: dict[str, Callable[[], None]] = {
            "crash": self._crash,
            "restart": self._restart,
            "give": self._give,
            "want": self._want,
            "leave": self._leave,
            "split": self._split,
            "clog": self._clog,
            "pause": self._pause,
            "slow": self._slow,
            "nothing": lambda: None,
        }

    def run(self, duration_s: float) -> None:
        """Let faults happen for a while."""
        world, rng, rates = self._world, self._rng, self._rates
        world.network.weather, world.damage = rates.weather, rates.damage
        end_s = world.clock.now + duration_s
        next_s = world.clock.now
        while world.clock.now < end_s:
            world.clock.run_until(min(world.clock.now + LOOK_S, end_s))
            self._collect_left()
            world.checker.look()
            if world.clock.now >= next_s:
                next_s = world.clock.now + rng.expovariate(1.0 / rates.event_gap_s)
                kind = rng.choices(list(rates.weights), list(rates.weights.values()))[0]
                self._deeds[kind]()
                if self.plans is not None:
                    self.plans.maybe_deal()

    def heal(self) -> None:
        """End all faults; most who are down are started again, whoever is leaving goes on."""
        world = self._world
        world.note("all is healed")
        world.network.heal()
        world.damage = 0.0
        self._collect_left()
        for node in world.living():
            node.process.lag_s = 0.0
            node.process.resume()
        for name in sorted(self.down):
            if self._rng.random() < self._rates.stays_down and len(self.down) + len(world.living()) > 2:
                world.note(f"{name} stays down")
                del self.down[name]
        self.restart_all()
        if self.plans is not None:
            self.plans.keep_up()
        elif self._rates.wants_plan:
            self._want_plan()
        else:
            for node in world.living():
                if node.custody is not None:
                    node.custody.feed(Want(()))

    def restart_all(self) -> None:
        """Start whoever is down or has left."""
        self._collect_left()
        for name in sorted(self.down):
            self._world.start(name, self.down.pop(name))

    def _want_plan(self) -> None:
        """Placement wants what the running node's does: the guardian plan, which fills memory with replicas."""
        world = self._world
        capacities = {node.name: node.capacity_bytes for node in world.living()}
        plan = guardian_plan(list(world.expert_bytes.items()), capacities)
        for node in world.living():
            if node.custody is not None:
                node.custody.feed(Want(tuple(plan.by_node[node.name])))

    # -- deeds ------------------------------------------------------------

    def _crash(self) -> None:
        world, victim = self._world, self._victim()
        if victim is None or len(self._able()) <= STAYING_MIN:
            return
        within = world.checker.may_crash(victim)
        if not within and not self._rates.beyond:
            return
        self.counts["crashes" if within else "crashes beyond"] += 1
        if not within and victim.custody is not None:
            world.checker.forgive(victim.custody.machine.custody)
        world.crash(victim)
        wiped = within and self._rng.random() < self._rates.wipe
        self.down[victim.name] = world.new_disk(whole_model=False) if wiped else victim.disk

    def _restart(self) -> None:
        if self.down:
            self.counts["restarts"] += 1
            name = self._rng.choice(sorted(self.down))
            self._world.start(name, self.down.pop(name), moves=self._rng.random() < self._rates.moves)

    def _give(self) -> None:
        for _ in range(self._rng.choice((1, 1, 5))):
            donor, receiver = self._someone(), self._someone()
            if donor is None or receiver is None or donor is receiver or donor.custody is None:
                return
            experts = sorted(donor.custody.machine.custody)
            if experts:
                self.counts["migrations"] += 1
                donor.custody.feed(Give(self._rng.choice(experts), receiver.name))

    def _want(self) -> None:
        node = self._someone()
        if node is not None and node.custody is not None:
            experts = sorted(self._world.expert_bytes)
            wanted: list[ExpertId] = self._rng.sample(experts, self._rng.randint(0, len(experts) // 2))
            node.custody.feed(Want(tuple(wanted)))

    def _leave(self) -> None:
        node = self._someone()
        if node is not None and len(self._able()) > STAYING_MIN:
            self.counts["leaves"] += 1
            self._world.note(f"{node.name} is leaving")
            node.leave()

    def _split(self) -> None:
        world, rng = self._world, self._rng
        self.counts["splits"] += 1
        # Long enough, mostly, that each side buries the other and repairs what it lacks.
        duration_s = rng.choice((2.0, 8.0, 15.0)) * rng.uniform(0.5, 1.5)
        one_way = rng.random() < self._rates.one_way
        world.network.split(sorted(world.boxes), world.clock.now + duration_s, one_way=one_way)
        world.note(f"the network is split for {duration_s:.1f} s{', in one direction' if one_way else ''}")

    def _clog(self) -> None:
        sender, receiver = self._rng.sample(sorted(self._world.boxes), 2)
        duration_s = self._rng.uniform(0.5, 15.0)
        self.counts["clogs"] += 1
        self._world.note(f"{sender} to {receiver} is clogged for {duration_s:.1f} s")
        self._world.network.clog((sender, receiver), self._world.clock.now + duration_s)

    def _pause(self) -> None:
        node = self._someone()
        if node is not None:
            duration_s = self._rng.choice((0.5, 3.0, 12.0)) * self._rng.uniform(0.5, 1.5)
            self.counts["pauses"] += 1
            self._world.note(f"{node.name} stands still for {duration_s:.1f} s")
            node.process.pause(duration_s)

    def _slow(self) -> None:
        node = self._someone()
        if node is not None:
            node.process.lag_s = self._rng.choice((0.0, 0.05, 0.4))
            self.counts["slow"] += 1
            self._world.note(f"{node.name} is {node.process.lag_s} s late with everything")

    def _victim(self) -> SimNode | None:
        """Half of the time, one who is just being asked whether its claim stands: that is when a crash matters most."""
        asked = {
            peer for node in self._world.living() if node.custody for peer in node.custody.machine.questions.values()
        }
        asked_able = [node for node in self._able() if node.name in asked]
        return self._rng.choice(asked_able) if asked_able and self._rng.random() < 0.5 else self._someone()

    def _someone(self) -> SimNode | None:
        able = [
            node
            for node in self._world.living()
            if not node.process.paused and node.phase not in ("leaving", "parting")
        ]
        return self._rng.choice(able) if able else None

    def _able(self) -> list[SimNode]:
        """Nodes that run and mean to stay."""
        living = self._world.living()
        return [node for node in living if not node.process.paused and node.phase not in ("leaving", "parting")]

    def _collect_left(self) -> None:
        for name, node in list(self._world.left.items()):
            self.down[name] = node.disk
            del self._world.left[name]
