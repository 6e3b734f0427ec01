"""Use a mesh of this box until its experts stand where they are used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import trio

from meshmoe.cli.local_mesh import LocalNode

CALM_LOOKS = 3
"""So many seconds in a row nothing may move."""


class Use(NamedTuple):
    """What one node is asked for.

    Attributes:
        node: The node.
        prompts: The beginnings of its texts; endless.
    """

    node: LocalNode
    prompts: Iterable[str]


async def adapt(uses: Sequence[Use], most_s: float) -> float | None:
    """Have every node write texts, sampled, until the placement follows that use and has come to rest.

    Args:
        uses: One for each stream.
        most_s: Not longer than this.

    Returns:
        Seconds that it took; None if it did not come to rest in time.
    """
    began_s = trio.current_time()

    async def write(use: Use) -> None:
        for number, prompt in enumerate(use.prompts):
            await use.node.complete(
                {"model": "default", "prompt": prompt, "max_tokens": 64, "temperature": 0.8, "seed": number}
            )

    with trio.move_on_after(most_s) as scope:
        async with trio.open_nursery() as nursery:
            for use in uses:
                nursery.start_soon(write, use)
            calm = 0
            while calm < CALM_LOOKS:
                await trio.sleep(1.0)
                calm = calm + 1 if _is_calm([await use.node.status() for use in uses]) else 0
            nursery.cancel_scope.cancel()
    return None if scope.cancelled_caught else trio.current_time() - began_s


def _is_calm(statuses: list[dict[str, Any]]) -> bool:
    """Whether weights have followed use, nothing moves, and all agree on who holds what."""
    return all(
        status["placement"]["settled"]
        and not status["custody"]["intakes"]
        and not status["custody"]["migrations"]
        and status["agreement"]["equal"]
        for status in statuses
    )
