"""How bad one seed is: every seed draws its own rates, from none to more than any network of a house will show."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from meshmoe.sim.network import Weather

CLOCK_RATES = (0.0, 0.001, 0.05)
"""How far clocks may run off, as a share: not at all, like cheap quartz, and much worse than any."""


@dataclass(frozen=True)
class FaultRates:
    """Of the safety phase.

    Attributes:
        weather: Loss, duplication, delay and jitter everywhere.
        damage: Share of units found damaged when loaded.
        weights: Of every kind of event, against each other.
        event_gap_s: Mean time between two events.
        wipe: Share of crashes after which the disk is new.
        moves: Share of restarts at another address.
        stays_down: Share of nodes that are down when all heals and are never started again.
        one_way: Share of splits that cut one direction only.
        beyond: Whether nodes may crash that hold the last standing claim; their disks are kept then.
        skew: Clock rates differ from true time by up to this share.
        wants_plan: Whether placement wants replicas in the liveness phase, as it does in the running node.
    """

    weather: Weather
    damage: float
    weights: dict[str, float]
    event_gap_s: float
    wipe: float
    moves: float
    stays_down: float
    one_way: float
    beyond: bool
    skew: float
    wants_plan: bool


def draw_rates(rng: Random) -> FaultRates:
    """The rates of one seed."""
    weather = Weather(
        loss=rng.choice((0.0, 0.02, 0.1, 0.3)),
        duplication=rng.choice((0.0, 0.02, 0.2)),
        delay_s=rng.choice((0.0002, 0.003, 0.02)),
        jitter_s=rng.choice((0.0005, 0.005, 0.05, 0.4)),
        rate_bytes_per_s=rng.choice((2e6, 2e7, 1e8)),
    )
    kinds = ("crash", "restart", "give", "want", "leave", "split", "clog", "pause", "slow")
    usual = (1.0, 1.2, 1.5, 0.5, 0.3, 0.4, 0.4, 0.4, 0.2)
    # Some kinds are left out in each seed: what always happens together hides what each does alone.
    weights = {kind: weight * rng.choice((0.0, 0.3, 1.0, 1.0, 3.0)) for kind, weight in zip(kinds, usual, strict=True)}
    weights["restart"] = max(weights["restart"], 0.3 * weights["crash"])
    weights["nothing"] = 0.1
    return FaultRates(
        weather=weather,
        damage=rng.choice((0.0, 0.0, 0.1)),
        weights=weights,
        event_gap_s=rng.choice((0.3, 0.6, 1.5)),
        wipe=rng.choice((0.0, 0.3, 0.7)),
        moves=rng.choice((0.0, 0.2)),
        stays_down=rng.choice((0.0, 0.0, 0.6)),
        one_way=rng.choice((0.0, 0.5, 1.0)),
        beyond=rng.random() < 0.15,
        skew=rng.choice(CLOCK_RATES),
        wants_plan=rng.random() < 0.5,
    )
