"""``meshmoe sim``: run the simulator; a failure prints the command that replays it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import click

from meshmoe.sim import InvariantError, Outcome, run_seed


@click.command()
@click.option("--seed", default=0, show_default=True, help="The first seed.")
@click.option("--count", default=1, show_default=True, type=click.IntRange(min=1), help="How many seeds.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Processes to run them in.")
@click.option("--verbose", is_flag=True, help="Print what happens, and what every clean seed was like.")
def sim(seed: int, count: int, jobs: int, verbose: bool) -> None:
    """Run whole meshes in virtual time, with faults, and check that no promise is broken.

    Each seed draws a mesh and its faults, lets them happen, heals everything, and demands that the mesh settles.
    """
    start_s = time.monotonic()
    settled_s: dict[str, list[float]] = {}
    failed: list[int] = []
    seeds = range(seed, seed + count)
    for number, result in zip(seeds, _results(seeds, jobs, verbose=verbose and count == 1), strict=True):
        if isinstance(result, str):
            failed.append(number)
            click.echo(f"seed {number} FAILED: {result}")
            continue
        if verbose:
            click.echo(f"seed {number}: {result}")
        for name, at_s in result.settled_s.items():
            settled_s.setdefault(name, []).append(at_s)
    took_s = time.monotonic() - start_s
    click.echo(f"{count} seeds, {len(failed)} failed, {60 * count / took_s:.0f} a minute")
    for name, times_s in settled_s.items():
        times_s.sort()
        median_s, late_s = times_s[len(times_s) // 2], times_s[len(times_s) * 99 // 100]
        click.echo(f"{name} settled after {median_s:.1f} s (median), {late_s:.1f} s (99 %), {times_s[-1]:.1f} s (most)")
    if failed:
        click.echo(f"replay: meshmoe sim --seed {failed[0]} --verbose")
        sys.exit(1)


def _results(seeds: range, jobs: int, *, verbose: bool) -> Iterator[Outcome | str]:
    """What became of each seed, in their order."""
    if jobs == 1:
        for seed in seeds:
            yield _run(seed, verbose=verbose)
    else:
        with ProcessPoolExecutor(jobs) as pool:
            yield from pool.map(_run, seeds, chunksize=4)


def _run(seed: int, *, verbose: bool = False) -> Outcome | str:
    """One seed; its failure as text."""
    try:
        return run_seed(seed, say=click.echo if verbose else None)
    except InvariantError as error:
        return str(error)
