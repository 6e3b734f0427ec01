"""Breadth-first search of a state space, with the shortest trace to the first violation."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from meshmoe.custody.rule import CustodyRule
from tests.custody.exhaustive.model import Bounds, State, ViolationError, World


class Result(NamedTuple):
    """What a search found.

    Attributes:
        states: Distinct states reached.
        transitions: Steps taken between them.
        violation: What went wrong, in words; None if nothing did.
        trace: The steps that lead there.
        complete: Whether the whole space was searched.
    """

    states: int
    transitions: int
    violation: str | None
    trace: tuple[str, ...]
    complete: bool

    def __str__(self) -> str:
        verdict = "safe" if self.violation is None else f"VIOLATION: {self.violation}"
        lines = [
            f"{verdict}; {self.states:,} states, {self.transitions:,} transitions{'' if self.complete else ' (cut)'}"
        ]
        return "\n".join([*lines, *(f"  {number}. {step}" for number, step in enumerate(self.trace, 1))])


def search(rule: CustodyRule, bounds: Bounds, *, states_max: int = 20_000_000) -> Result:
    """Try every order of events.

    Args:
        rule: The product's rule, or a mutant of it.
        bounds: How far to go.
        states_max: Where to stop if the space is larger than thought.
    """
    world = World(rule, bounds)
    start = world.initial()
    came_from: dict[State, tuple[State, str] | None] = {start: None}
    queue = deque([start])
    transitions = 0
    while queue:
        state = queue.popleft()
        bad = world.violation(state)
        if bad is not None:
            return Result(len(came_from), transitions, bad, _trace(came_from, state), complete=False)
        if len(came_from) > states_max:
            return Result(len(came_from), transitions, None, (), complete=False)
        try:
            for label, after in world.successors(state):
                transitions += 1
                if after not in came_from:
                    came_from[after] = (state, label)
                    queue.append(after)
        except ViolationError as broken:
            return Result(len(came_from), transitions, str(broken), _trace(came_from, state), complete=False)
    return Result(len(came_from), transitions, None, (), complete=True)


def _trace(came_from: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    steps = []
    step = came_from[state]
    while step is not None:
        steps.append(step[1])
        step = came_from[step[0]]
    return tuple(reversed(steps))
