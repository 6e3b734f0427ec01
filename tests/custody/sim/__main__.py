"""Run seeds: ``python -m tests.custody.sim --seed N [--count M]``. A failure prints the command that replays it."""

from __future__ import annotations

import argparse
import sys
import time

from tests.custody.sim.chaos import Chaos
from tests.custody.sim.checker import InvariantError


def main() -> int:
    """Run seeds; the exit status says whether all were clean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    arguments = parser.parse_args()
    start_s = time.monotonic()
    failed = 0
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        chaos = Chaos(seed)
        try:
            chaos.run()
        except InvariantError as error:
            failed += 1
            sys.stdout.write(f"seed {seed}: {error}\n")
        else:
            sys.stdout.write(f"seed {seed}: clean, {chaos.counts}\n")
        sys.stdout.flush()
    took_s = time.monotonic() - start_s
    sys.stdout.write(f"{arguments.count} seeds, {failed} failed, {60 * arguments.count / took_s:.0f} a minute\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
