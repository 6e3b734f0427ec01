"""Which faults happen when: a pure function of a seed, so that a run can be repeated.

One fault at a time takes something away (a node, its links, its disk), since the mesh promises to bear one and the run
must tell a broken promise from too many faults. Those that take nothing away (slow links, garbage) overlap with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

CALM_S = 15.0
"""Before the first fault."""

HEAL_S = 12.0
"""After one that takes something away has ended, before the next: detection takes 5 s, repair some more."""


RESTARTS = ("kill", "leave", "wipe")
COMES_BACK_S = 20.0
"""What a node may take on a busy box to serve again once it has been started."""


class Kind(NamedTuple):
    """A kind of fault.

    Attributes:
        weight: How often, against the others.
        lasts_s: Shortest and longest.
        takes_away: Whether something of the mesh is missing meanwhile.
        what: In words.
    """

    weight: float
    lasts_s: tuple[float, float]
    takes_away: bool
    what: str


KINDS: dict[str, Kind] = {
    "kill": Kind(2, (5, 15), True, "SIGKILL, started again later"),
    "stop": Kind(2, (1, 12), True, "SIGSTOP, then SIGCONT"),
    "leave": Kind(1, (5, 10), True, "SIGTERM: leaves in good order, joins again later"),
    "wipe": Kind(1, (5, 10), True, "SIGKILL and all weights deleted, started again later"),
    "partition": Kind(2, (2, 15), True, "all links of a node blocked"),
    "loss": Kind(1, (5, 15), False, "5 % of packets lost on all links of a node"),
    "delay": Kind(1, (5, 15), False, "40 ms more on all links of a node"),
    "disk-full": Kind(1, (5, 15), False, "no file of a node may grow"),
    "noise": Kind(1, (2, 5), False, "random bytes to a node's ports, without a key"),
    "stranger": Kind(1, (2, 5), False, "a peer with a key but without a token, sending garbage"),
    "corrupt": Kind(1, (2, 5), False, "an admitted member that sends damaged messages at full speed"),
}


class Fault(NamedTuple):
    """One fault of a plan; times are seconds since the run began."""

    at_s: float
    kind: str
    node: str
    lasts_s: float


def make_plan(seed: int, nodes: Sequence[str], duration_s: float, kinds: Sequence[str] = tuple(KINDS)) -> list[Fault]:
    """Faults in the order in which they begin; all have ended `HEAL_S` before the end.

    Args:
        seed: Decides everything.
        nodes: Names; the first is where requests are always sent too, and is spared what would end them.
        duration_s: Of the run.
        kinds: Those to choose from.
    """
    rng = Random(seed)
    plan: list[Fault] = []
    for takes_away, gap_s in ((True, HEAL_S), (False, 6.0)):
        some = [kind for kind in kinds if KINDS[kind].takes_away is takes_away]
        if not some:
            continue
        # Every kind once before chance decides, so that a run of some minutes has them all.
        queue = rng.sample(some, len(some))
        now_s = CALM_S + rng.uniform(0, 5)
        while True:
            kind = queue.pop() if queue else rng.choices(some, [KINDS[k].weight for k in some])[0]
            lasts_s = rng.uniform(*KINDS[kind].lasts_s)
            if now_s + lasts_s + HEAL_S > duration_s:
                break
            there = list(nodes[1:]) if takes_away else _there(plan, nodes[1:], now_s, now_s + lasts_s)
            plan.append(Fault(now_s, kind, rng.choice(there), lasts_s))
            now_s += lasts_s + gap_s + rng.uniform(0, 6)
    return sorted(plan)


def _there(plan: Sequence[Fault], nodes: Sequence[str], from_s: float, to_s: float) -> list[str]:
    """Nodes that should be there all the time: a fault of one that has been killed would be no fault."""
    gone = {
        fault.node
        for fault in plan
        if fault.kind in RESTARTS and fault.at_s < to_s and fault.at_s + fault.lasts_s + COMES_BACK_S > from_s
    }
    return [node for node in nodes if node not in gone] or list(nodes)
