"""One seed of the simulator: a mesh forms, faults happen, all heals, everything settles; or an invariant is broken."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import NamedTuple

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody.rule import CustodyRule
from meshmoe.sim.chaos import Chaos
from meshmoe.sim.checker import InvariantError
from meshmoe.sim.plans import Plans
from meshmoe.sim.rates import FaultRates, draw_rates
from meshmoe.sim.settled import Settling
from meshmoe.sim.world import Box, World

PLANNED_SHARE = 0.3
"""Of seeds: placement has plans that change."""

FORM_S = 12.0
FAULTS_S = 45.0
STABLE_S = 5.0
LOOK_S = 0.5
LOG_LINES = 60


class Outcome(NamedTuple):
    """What a clean seed was like.

    Attributes:
        seed: Which.
        nodes: How many boxes.
        experts: How many experts.
        counts: What happened, how often.
        settled_s: When each condition came to hold for good, after the faults had ended.
        virtual_s: Virtual time in all.
        messages: Carried by the network.
    """

    seed: int
    nodes: int
    experts: int
    counts: dict[str, int]
    settled_s: dict[str, float]
    virtual_s: float
    messages: int

    def __str__(self) -> str:
        what = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        settled = ", ".join(f"{name} {at_s:.1f} s" for name, at_s in self.settled_s.items())
        return f"{self.nodes} nodes, {self.experts} experts; {what or 'no faults'}; settled: {settled}"


def run_seed(seed: int, *, rule: CustodyRule | None = None, say: Callable[[str], None] | None = None) -> Outcome:
    """Run one seed from beginning to end.

    Args:
        seed: Everything random comes from it.
        rule: The custody rule; only tests give another one.
        say: Hears what happens, line by line.

    Raises:
        InvariantError: An invariant is broken; the message has the command that replays the seed, and what happened.
    """
    rng = Random(f"meshmoe {seed}")
    rates = draw_rates(rng)
    world = _world(rng, rates, rule, say)
    world.note(f"seed {seed}: {len(world.boxes)} nodes, {len(world.expert_bytes)} experts, {rates}")
    chaos = Chaos(world, rates, Random(rng.random()))
    plans_rng = Random(f"meshmoe plans {seed}")  # of its own: seeds that are known for something stay what they are
    if plans_rng.random() < PLANNED_SHARE:
        chaos.plans = Plans(world, plans_rng)
    try:
        with _rubbish_lies_until_the_end():
            _form(world, rng)
            chaos.run(FAULTS_S)
            settled_s = _settle(world, chaos)
    except Exception as error:  # a machine that breaks down is a finding like any other
        log = "\n".join(world.log[:1] + world.log[1:][-LOG_LINES:])
        replay = f"replay: meshmoe sim --seed {seed} --verbose"
        what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        raise InvariantError(f"{what}\nat {world.clock.now:.3f} s; {replay}\n{log}") from error
    return Outcome(
        seed,
        len(world.boxes),
        len(world.expert_bytes),
        dict(chaos.counts + (chaos.plans.counts if chaos.plans is not None else Counter())),
        settled_s,
        world.clock.now,
        world.network.carried,
    )


def _world(rng: Random, rates: FaultRates, rule: CustodyRule | None, say: Callable[[str], None] | None) -> World:
    """Boxes of unequal size, which together hold everything once to thrice; rarely, not even once."""
    layers, per_layer = rng.choice(((1, 4), (1, 8), (2, 3), (2, 6), (2, 10)))
    size_bytes = rng.choice(((300_000,), (2_500_000,), (1_000_000, 1_600_000)))
    expert_bytes = {
        ExpertId(layer, index): size_bytes[layer % len(size_bytes)]
        for layer in range(layers)
        for index in range(per_layer)
    }
    names = [NodeId(f"n{i}") for i in range(rng.choice((3, 3, 4, 4, 5, 6, 7)))]
    plenty = rng.choice((0.8, 1.3, 2.2, 2.2, 3.0))
    share_bytes = sum(expert_bytes.values()) * plenty / len(names)
    boxes = {
        name: Box(
            int(share_bytes * rng.uniform(0.8, 1.5)),
            1.0 + rng.uniform(-rates.skew, rates.skew),
            rng.uniform(-3600.0, 3600.0),
        )
        for name in names
    }
    return World(rng, expert_bytes, boxes, rule=rule, say=say)


@contextmanager
def _rubbish_lies_until_the_end() -> Iterator[None]:
    """No cyclic garbage collection in the meantime.

    A seed leaves a few megabytes that only the collector frees; looking for them again and again on the way was
    a fifth of its time. Collection comes by itself after the seed, when the first object is made.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _form(world: World, rng: Random) -> None:
    """The boxes start one after the other, in fair weather; the first one has the checkpoint."""
    for i, name in enumerate(world.boxes):
        world.start(name, world.new_disk(whole_model=i == 0 or rng.random() < 0.3))
        world.clock.run_until(world.clock.now + rng.choice((0.0, 0.3, 2.0)))
    end_s = FORM_S + world.clock.now
    while world.clock.now < end_s:
        world.clock.run_until(world.clock.now + LOOK_S)
        world.checker.look()


def _settle(world: World, chaos: Chaos) -> dict[str, float]:
    """Heal, and watch everything come about."""
    chaos.heal()
    settling = Settling(world)
    while not settling.is_over(STABLE_S):
        world.clock.run_until(world.clock.now + LOOK_S)
        chaos.restart_all()
        if chaos.plans is not None:
            chaos.plans.keep_up()
        world.checker.look()
        problem = settling.problem()
        if problem is not None:
            raise InvariantError(problem)
        world.checker.is_calm = settling.is_quiet
    return settling.held_since_s
