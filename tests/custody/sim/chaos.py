"""What happens to a simulated mesh in one seed: a phase of faults, healing, a phase in which all must settle."""

from __future__ import annotations

from random import Random

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody import Give, Leave, Want
from meshmoe.custody.rule import CustodyRule
from tests.custody.sim.checker import InvariantError
from tests.custody.sim.network import Faults
from tests.custody.sim.node import Disk, SimNode
from tests.custody.sim.world import World

FAULTS_S = 60.0
SETTLE_S = 90.0


class Chaos:
    """One seed. Everything random comes from it."""

    def __init__(self, seed: int, rule: CustodyRule | None = None) -> None:
        self.seed = seed
        self.rng = Random(seed * 7919 + 1)
        self.world = World(seed, layers=2, experts=self.rng.randint(3, 10), rule=rule)
        self.names = [NodeId(f"n{i}") for i in range(self.rng.randint(3, 6))]
        total_bytes = sum(self.world.expert_bytes.values())
        plenty = self.rng.choice((1.3, 2.2, 3.0))
        self.capacity_bytes = {
            name: int(total_bytes * plenty / len(self.names) * self.rng.uniform(0.8, 1.5)) for name in self.names
        }
        self.down: dict[NodeId, Disk] = {}
        self.counts = {"crashes": 0, "migrations": 0, "leaves": 0, "splits": 0}

    def run(self) -> None:
        """Run the seed; raises `InvariantError` with a replay command."""
        try:
            self._run()
        except AssertionError as error:
            log = "\n".join(self.world.log[-40:])
            replay = f"python -m tests.custody.sim --seed {self.seed}"
            raise InvariantError(f"{error}\nat {self.world.clock.now:.3f} s; replay: {replay}\n{log}") from error

    def _run(self) -> None:
        world, rng = self.world, self.rng
        for name in self.names:
            self._start(name, self._first_disk(name))
        world.clock.run_until(15.0)
        world.network.faults = Faults(
            loss=rng.choice((0.0, 0.05, 0.3)),
            duplication=rng.choice((0.0, 0.2)),
            delay_s=0.005,
            jitter_s=rng.choice((0.005, 0.05, 0.5)),
        )
        world.damage = rng.choice((0.0, 0.1))
        end_s = world.clock.now + FAULTS_S
        while world.clock.now < end_s:
            world.clock.run_until(world.clock.now + rng.expovariate(1.0))
            rng.choice((self._crash, self._crash, self._restart, self._give, self._give, self._want))()
            if rng.random() < 0.15:
                rng.choice((self._split, self._mend, self._pause, self._leave))()
            self._depart()
        self._heal()
        self._settle()

    # -- faults ------------------------------------------------------------

    def _first_disk(self, name: NodeId) -> Disk:
        disk = Disk()
        if name == self.names[0] or self.rng.random() < 0.3:
            disk.stored_bytes = dict.fromkeys(self.world.expert_bytes, self.world.unit_bytes)
        return disk

    def _start(self, name: NodeId, disk: Disk) -> None:
        self.world.start(name, self.capacity_bytes[name], disk)

    def _crash(self) -> None:
        victim = self._someone()
        if victim is None or len(self.world.living()) < 3 or not self.world.checker.may_crash(victim):
            return
        self.counts["crashes"] += 1
        self.world.crash(victim)
        kept = self.rng.random() < 0.5
        self.down[victim.name] = victim.disk if kept else Disk()

    def _restart(self) -> None:
        if self.down:
            name = self.rng.choice(sorted(self.down))
            self._start(name, self.down.pop(name))

    def _give(self) -> None:
        donor, receiver = self._someone(), self._someone()
        if donor is not None and receiver is not None and donor is not receiver and donor.machine.custody:
            self.counts["migrations"] += 1
            donor.feed(Give(self.rng.choice(sorted(donor.machine.custody)), receiver.name))

    def _want(self) -> None:
        node = self._someone()
        if node is not None:
            experts = sorted(self.world.expert_bytes)
            node.feed(Want(tuple(self.rng.sample(experts, self.rng.randint(0, len(experts) // 3)))))

    def _split(self) -> None:
        self.counts["splits"] += 1
        self.world.note("the network is split")
        self.world.network.split(self.names, one_way=self.rng.random() < 0.3)

    def _mend(self) -> None:
        self.world.note("the network is mended")
        self.world.network.cut.clear()

    def _pause(self) -> None:
        node = self._someone()
        if node is not None:
            self.world.note(f"{node.name} stands still")
            node.pause(self.rng.uniform(0.5, 12.0))

    def _leave(self) -> None:
        node = self._someone()
        if node is not None and len(self.world.living()) > 3:
            self.counts["leaves"] += 1
            self.world.note(f"{node.name} is leaving")
            node.leaving()
            node.feed(Leave())

    def _depart(self) -> None:
        for node in self.world.living():
            if node.left is not None:
                self.down[node.name] = node.disk
                self.world.depart(node)

    def _someone(self) -> SimNode | None:
        living = [node for node in self.world.living() if not node.paused and not node._leaving]
        return self.rng.choice(living) if living else None

    # -- afterwards ------------------------------------------------------------

    def _heal(self) -> None:
        world = self.world
        world.note("all is healed")
        world.network.faults, world.network.cut, world.damage = Faults(), set(), 0.0
        for name in sorted(self.down):
            self._start(name, self.down.pop(name))
        for node in world.living():
            node.feed(Want(()))

    def _settle(self) -> None:
        """L2, and what custody is to bring about."""
        world = self.world
        end_s = world.clock.now + SETTLE_S
        while world.clock.now < end_s:
            world.clock.run_until(world.clock.now + 1.0)
            for node in world.living():
                if node.left is not None:
                    disk = node.disk
                    world.depart(node)
                    self._start(node.name, disk)
        for node in world.living():
            if node.machine.migrations or node.machine.intakes:
                raise InvariantError(f"L2: {node.name} has migrations or intakes that do not end")
            if node.machine._desk.book.asking:
                raise InvariantError(f"L2: {node.name} asks for ever")
        for expert in world.expert_bytes:
            self._settled(expert)
        gone = [expert for expert in world.expert_bytes if self._is_gone(expert)]
        in_custody = sum(len(node.machine.custody) for node in world.living()) + len(gone)
        places = sum(node.capacity_bytes // world.unit_bytes for node in world.living())
        if in_custody < min(places, len(world.expert_bytes)):
            raise InvariantError(f"{in_custody} experts are in custody, and there is room for {places}")

    def _is_gone(self, expert: ExpertId) -> bool:
        """Whether no weights of an expert are left anywhere: its last disk was damaged after its custodian had left."""
        return not any(expert in node.resident or expert in node.whole_units() for node in self.world.living())

    def _settled(self, expert: ExpertId) -> None:
        living = self.world.living()
        if self._is_gone(expert):
            for node in living:
                if expert not in node.lost:
                    raise InvariantError(f"{expert} is gone for good, and {node.name} does not say so")
            return
        slots = sorted(node.machine.custody[expert] for node in living if expert in node.machine.custody)
        wanted = {node.machine._desk.plan.slots(expert) for node in living}
        if len(wanted) != 1:
            raise InvariantError(f"views of {expert} differ after all is healed: {wanted}")
        if len(set(slots)) != len(slots):
            raise InvariantError(f"L2: {expert} has several custodians in one slot: {slots}")
        if len(slots) != min(wanted) and not any(node.machine.missing_bytes for node in living):
            raise InvariantError(f"L2: {expert} has custodians in slots {slots}, {min(wanted)} are wanted")
        for node in living:
            if expert in node.resident and expert not in node.machine.custody:
                raise InvariantError(f"L2: {node.name} keeps {expert}, which nobody wants")
