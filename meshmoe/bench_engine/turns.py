"""Measuring in turns: every candidate once, then all again, so that a busy machine slows them alike; medians."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import TypeVar

Key = TypeVar("Key")

Progress = Callable[[str], None]
"""Told in words what is being measured."""


def in_turns(candidates: Mapping[Key, Callable[[], float]], turns: int) -> dict[Key, float]:
    """Measure every candidate ``turns`` times, one after the other.

    Args:
        candidates: Each measures itself once and returns its figure.
        turns: Rounds; one more goes before them and is not counted.

    Returns:
        Each candidate's median.
    """
    found: dict[Key, list[float]] = {key: [] for key in candidates}
    for turn in range(turns + 1):
        for key, measure in candidates.items():
            figure = measure()
            if turn:
                found[key].append(figure)
    return {key: median(figures) for key, figures in found.items()}
