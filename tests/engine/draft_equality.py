"""Greedy texts of five domains with drafts and without: ``python -m tests.engine.draft_equality``.

A node that holds everything and drafts nothing writes the texts first, one at a time. Then a node that holds a share of
the experts, the others behind calls that take a moment, writes them again in each mode, several at once. Every token is
compared. ``--share 1 --at-once 16 off`` compares batches of sixteen with batches of one, and nothing else.

Greedy texts of a small model soon repeat themselves, and what repeats is easily drafted. So there are many short ones,
and each goes on from a beginning that was drawn at random, with a seed, by the node alone.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from time import perf_counter

import torch
import trio

from meshmoe.bench_engine.texts import OPENINGS, short_prompt
from meshmoe.engine.drafts.mode import OFF, parse_draft_mode
from meshmoe.engine.engine import EngineLimits, open_engine
from meshmoe.engine.request import GenerationStats
from tests.engine.support import Scattered, complete, edge, edge_pool, subset

MODES = ("off", "2", "4", "8", "lookup", "auto")
BEGINNING_TOKENS = 24
DELAY_MAX_S = 0.001
"""Each way, of a call: enough for ``auto`` to find drafts worth while."""


@dataclass(frozen=True)
class Wanted:
    """What is written: ``texts`` of each domain, ``tokens`` long, on a node that holds ``share`` of the experts."""

    texts: int
    tokens: int
    share: float = 0.4
    at_once: int = 4
    dtype: torch.dtype = torch.bfloat16

    @property
    def keys(self) -> list[tuple[str, int]]:
        return list(product(OPENINGS, range(self.texts)))


@dataclass
class Written:
    """What one mode came to, by domain and number."""

    texts: dict[tuple[str, int], list[int]]
    drafted: int
    accepted: int
    passes: int
    took_s: float

    @property
    def tokens(self) -> int:
        return sum(map(len, self.texts.values()))

    def same_as(self, other: Written) -> int:
        """Tokens that stand where the other has the same, before the first difference of each text."""
        return sum(_common(text, other.texts[key]) for key, text in self.texts.items())


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


@cache
def beginnings(wanted: Wanted) -> dict[tuple[str, int], tuple[int, ...]]:
    """What each text goes on from."""
    _, model = edge(wanted.dtype)
    found: dict[tuple[str, int], tuple[int, ...]] = {}

    async def main() -> None:
        async with open_engine(model, edge_pool(wanted.dtype), limits=EngineLimits(drafts=OFF)) as engine:
            for domain, number in wanted.keys:
                opening = tuple(model.tokenizer(short_prompt(domain, number)).input_ids)
                drawn = await complete(
                    engine, opening, max_tokens=BEGINNING_TOKENS, temperature=1.0, seed=number, ignore_eos=True
                )
                found[domain, number] = (*opening, *drawn.ids)

    trio.run(main)
    return found


def write(wanted: Wanted, mode: str, alone: bool = False) -> Written:
    """Write all texts; ``alone`` on a node that holds everything, one at a time."""
    _, model = edge(wanted.dtype)
    whole = edge_pool(wanted.dtype)
    rng = random.Random(5)
    here = whole if alone else subset(whole, [e for e in model.experts if rng.random() < wanted.share])
    found: dict[tuple[str, int], list[int]] = {}
    total = GenerationStats()
    prompts = beginnings(wanted)

    async def main() -> None:
        places = trio.CapacityLimiter(1 if alone else wanted.at_once)
        async with (
            open_engine(model, whole) as peer,
            open_engine(
                model,
                here,
                Scattered([peer], DELAY_MAX_S),
                EngineLimits(drafts=parse_draft_mode(mode)),
            ) as engine,
            trio.open_nursery() as nursery,
        ):

            async def one(domain: str, number: int) -> None:
                async with places:
                    prompt = prompts[domain, number]
                    result = await complete(engine, prompt, max_tokens=wanted.tokens, ignore_eos=True)
                stats = result.finish.stats
                found[domain, number] = result.ids
                total.drafted_tokens += stats.drafted_tokens
                total.accepted_tokens += stats.accepted_tokens
                total.decode_steps += stats.decode_steps

            for domain, number in wanted.keys:
                nursery.start_soon(one, domain, number)

    began = perf_counter()
    trio.run(main)
    took_s = perf_counter() - began
    return Written(found, total.drafted_tokens, total.accepted_tokens, total.decode_steps, took_s)


def variety(written: Written) -> float:
    """Different runs of four tokens, over all runs: greedy texts of a small model fall into loops."""
    runs = [tuple(text[at : at + 4]) for text in written.texts.values() for at in range(len(text) - 3)]
    return len(set(runs)) / len(runs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=50, help="of each domain")
    parser.add_argument("--tokens", type=int, default=40, help="of each text")
    parser.add_argument("--share", type=float, default=0.4, help="of the experts that the drafting node holds")
    parser.add_argument("--at-once", type=int, default=4, help="texts that the drafting node writes together")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("modes", nargs="*", default=MODES, help="as `meshmoe join --drafts` takes them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, arguments.dtype)
    wanted = Wanted(arguments.texts, arguments.tokens, arguments.share, arguments.at_once, dtype)
    right = write(wanted, "off", alone=True)
    sys.stdout.write(
        f"{right.tokens} tokens of {len(OPENINGS)} domains, {arguments.dtype}, {variety(right):.0%} of runs of four "
        f"differ; node alone {right.took_s:.0f} s\n"
    )
    failed = False
    for mode in arguments.modes:
        written = write(wanted, mode)
        same = written.same_as(right)
        failed |= same != right.tokens
        sys.stdout.write(
            f"drafts {mode:7} {same} of {written.tokens} identical, "
            f"{written.accepted} of {written.drafted} drafts right, {written.passes} passes, {written.took_s:.0f} s\n"
        )
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
