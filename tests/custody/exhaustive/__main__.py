"""Print state counts and the mutants' traces: ``python -m tests.custody.exhaustive [--large]``."""

from __future__ import annotations

import argparse
import sys
import time

from tests.custody.exhaustive.instances import DEFAULT, LARGE
from tests.custody.exhaustive.mutants import MUTANTS
from tests.custody.exhaustive.search import search


def main() -> int:
    """Run every instance, then every mutant; the exit status says whether all went as it must."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="the larger instances too (minutes, some GB)")
    parser.add_argument("--states-max", type=int, default=20_000_000, help="give up on a space larger than this")
    arguments = parser.parse_args()
    good = True
    for instance in (*DEFAULT, *(LARGE if arguments.large else ())):
        start_s = time.monotonic()
        result = search(instance.rule, instance.bounds, states_max=arguments.states_max)
        good &= result.complete
        sys.stdout.write(f"{instance.name}: {result} ({time.monotonic() - start_s:.1f} s)\n")
        sys.stdout.flush()
    for mutant in MUTANTS:
        result = search(mutant.rule, mutant.bounds)
        good &= result.violation is not None
        sys.stdout.write(f"mutant {mutant.name}: {result}\n")
        sys.stdout.flush()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
