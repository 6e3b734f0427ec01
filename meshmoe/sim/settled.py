"""The liveness phase: when all faults have ended, what must come about, and within which time.

Each condition is a function that says what is still wrong, in words, or None. Times are those after which a condition
must hold for good; `Settling` measures when it came to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from meshmoe.core.ids import ExpertId
from meshmoe.custody import CustodyMachine
from meshmoe.gossip import NodeView
from meshmoe.membership import MemberState
from meshmoe.sim.world import World


def membership_problem(world: World) -> str | None:
    """L1: every node holds exactly the living for alive, each in its present life."""
    staying = [node for node in world.living() if node.phase != "parting"]
    lives = {node.name: node.generation for node in staying}
    for node in staying:
        members = node.mesh.membership.members.values()
        seen = {member.node: member.generation for member in members if member.state is MemberState.ALIVE}
        if {**seen, node.name: node.generation} != lives:
            wrong = sorted(name for name in lives.keys() | seen.keys() if seen.get(name) != lives.get(name))
            return f"L1: {node.name} is wrong about {', '.join(n for n in wrong if n != node.name)}"
        if any(member.state is MemberState.SUSPECT for member in members):
            return f"L1: {node.name} suspects somebody"
    return None


def gossip_problem(world: World) -> str | None:
    """S5's consequence: every node shows of every other one what that one last told, and all see the same holders."""
    for node in world.living():
        view = node.mesh.gossip.view
        for other in world.living():
            own, seen = _lasting(other.mesh.gossip.view.nodes[other.name]), view.nodes.get(other.name)
            if seen is None or _lasting(seen) != own:
                return f"gossip: {node.name} has not what {other.name} tells"
        disagreeing = view.disagreeing()
        if disagreeing:
            return f"gossip: {node.name} and {', '.join(disagreeing)} see different holders"
    return None


def custody_problem(world: World) -> str | None:
    """L2, and every expert in custody in as many slots as capacity allows, once in each, and nothing beside."""
    machines = {}
    for node in world.living():
        if node.custody is None:
            return f"custody: {node.name} has not joined"
        machine = machines[node.name] = node.custody.machine
        if node.phase in ("leaving", "parting"):
            return f"L2: {node.name} does not come to leave"
        if machine.migrations or machine.intakes or machine.questions:
            return f"L2: {node.name} has migrations, intakes or questions that do not end"
    for expert in world.expert_bytes:
        problem = _expert_problem(world, expert, machines.values())
        if problem is not None:
            return problem
    return None


def _expert_problem(world: World, expert: ExpertId, machines: Iterable[CustodyMachine]) -> str | None:
    living = world.living()
    if not any(node.custody and (expert in node.custody.resident or node.disk.has(expert)) for node in living):
        silent = [node.name for node in living if node.custody and expert not in node.custody.lost]
        return f"custody: {expert} is gone for good, and {silent} do not say so" if silent else None
    slots = sorted(machine.custody[expert] for machine in machines if expert in machine.custody)
    wanted = {machine.slots_wanted(expert) for machine in machines}
    if len(wanted) != 1:
        return f"custody: views of {expert} differ: {sorted(wanted)} slots are wanted"
    if len(set(slots)) != len(slots):
        return f"L2: {expert} has several custodians in one slot: {slots}"
    if len(slots) < min(wanted) and _has_room(world, expert, machines):
        return f"L2: {expert} has custodians in slots {slots}, {min(wanted)} are wanted, and there is room"
    if len(slots) > min(wanted):
        return f"L2: {expert} has custodians in slots {slots}, {min(wanted)} are wanted"
    for node in living:
        assert node.custody is not None
        machine = node.custody.machine
        if expert in node.custody.resident and expert not in machine.custody and expert not in machine.wants:
            return f"L2: {node.name} keeps {expert}, which nobody wants"
    return None


def _has_room(world: World, expert: ExpertId, machines: Iterable[CustodyMachine]) -> bool:
    """Whether some node without this expert has room for it, or can make some.

    Experts of one size can always be moved until they fit, if the mesh holds every expert once. Experts of several
    sizes may not fit into what room the others leave; packing them better is nobody's duty.
    """
    size_bytes = world.expert_bytes[expert]
    same_size = len(set(world.expert_bytes.values())) == 1
    return any(
        (same_size and not machine.missing_bytes)
        or (expert not in machine.custody and machine.free_bytes >= size_bytes)
        for machine in machines
    )


def _lasting(view: NodeView) -> NodeView:
    """What a node tells, without suspicion and load, which change all the time."""
    return NodeView(view.node, view.generation, info=view.info, holdings=view.holdings, claims=view.claims)


class Condition(NamedTuple):
    """What must come about within ``limit_s`` after the faults have ended, and after the last node came or went."""

    name: str
    problem: Callable[[World], str | None]
    limit_s: float


CONDITIONS = (
    Condition("membership", membership_problem, 40.0),
    Condition("custody", custody_problem, 180.0),
    Condition("gossip", gossip_problem, 180.0),
)

QUIET_S = 10.0
"""A membership that has been right for so long has no reason to accuse anybody."""

OVER_S = 400.0
"""And all of them within this, whoever comes and goes."""


class Settling:
    """Watches conditions come to hold."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._start_s = world.clock.now
        self.held_since_s: dict[str, float] = {}
        """For each condition that holds, how long after the beginning it came to."""

    def problem(self) -> str | None:
        """Look once; returns what is wrong beyond its time."""
        passed_s = self._world.clock.now - self._start_s
        since_s = self._world.clock.now - max(self._start_s, self._world.last_change_s)
        for condition in CONDITIONS:
            problem = condition.problem(self._world)
            if problem is None:
                self.held_since_s.setdefault(condition.name, passed_s)
                continue
            self.held_since_s.pop(condition.name, None)
            if since_s > condition.limit_s or passed_s > OVER_S:
                return f"{problem}, {passed_s:.0f} s after all was healed"
        return None

    def is_over(self, stable_s: float) -> bool:
        """Whether everything has held for a while."""
        passed_s = self._world.clock.now - self._start_s
        return len(self.held_since_s) == len(CONDITIONS) and passed_s - max(self.held_since_s.values()) >= stable_s

    @property
    def is_quiet(self) -> bool:
        """Whether membership has held for long enough that nobody can be under an old suspicion."""
        passed_s = self._world.clock.now - self._start_s
        return passed_s - self.held_since_s.get("membership", passed_s) >= QUIET_S
