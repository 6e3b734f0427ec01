"""Detection times, false suspicions and bytes of the failure detector, measured on the virtual network.

Run ``.venv/bin/python -m tests.membership.figures [seeds]``; docs/decisions/membership-swim.md quotes the table.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import NamedTuple

from meshmoe.membership import LAN, WAN, MemberDead, MembershipConfig, MemberState, MemberSuspect
from tests.membership.virtual import Path, VirtualNet, bytes_per_s, sent_by

WATCH_S = 30.0


class Detection(NamedTuple):
    """What one run showed."""

    false_deaths: int
    """Up to the end, detection included."""
    suspicions: int
    bytes_per_s: float
    """Sent by a node on average, while nobody was dead."""
    first_s: float
    last_s: float
    """From the crash until the first, and the last, node holds it for dead."""


def detect(
    n: int,
    loss: float,
    seed: int,
    *,
    config: MembershipConfig = LAN,
    path: Path | None = None,
    watch_s: float = WATCH_S,
) -> Detection:
    """Form a mesh of ``n``, let it run under loss for ``watch_s``, then kill one node."""
    path = path or Path()
    path.loss = loss
    net = VirtualNet(seed, membership=config, path=path)
    nodes = net.mesh(n, settle_s=10 * config.probe_window_s)
    started_s, before = net.now, sent_by(nodes)
    net.run(watch_s)
    suspicions = len(net.seen(MemberSuspect, since_s=started_s))
    rate = statistics.mean(bytes_per_s(nodes, before, watch_s))
    victim = nodes[seed % n]
    crashed_s = net.now
    net.crash(victim)
    deaths = 0
    while deaths < n - 1 and net.now < crashed_s + 120:
        net.run(0.1)
        deaths = len(net.seen(MemberDead, of=victim, since_s=crashed_s))
    assert net.believe(victim, MemberState.DEAD), f"not all have noticed, seed {seed}"
    times = [entry.at_s - crashed_s for entry in net.seen(MemberDead, of=victim, since_s=crashed_s)]
    false_deaths = len(net.false_deaths(started_s))
    return Detection(false_deaths, suspicions, rate, min(times), max(times))


def table(sizes: list[int], losses: list[float], seeds: int, config: MembershipConfig, path: Path) -> list[str]:
    """Lines of the markdown table; suspicions and bytes sent are a node's, the former in a minute."""
    lines = [
        "| nodes | loss | seeds | first node, s: median (most) | last node, s | suspicions | false deaths | B/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for n in sizes:
        for loss in losses:
            runs = [detect(n, loss, seed, config=config, path=path) for seed in range(seeds)]
            first, last = [run.first_s for run in runs], [run.last_s for run in runs]
            suspicions = statistics.mean(run.suspicions for run in runs) / n * 60 / WATCH_S
            lines.append(
                f"| {n} | {loss:.0%} | {seeds} | {statistics.median(first):.1f} ({max(first):.1f}) "
                f"| {statistics.median(last):.1f} ({max(last):.1f}) | {suspicions:.1f} "
                f"| {sum(run.false_deaths for run in runs)} | {statistics.mean(run.bytes_per_s for run in runs):.0f} |"
            )
            sys.stderr.write(lines[-1] + "\n")
    return lines


def main() -> None:
    """Print the tables."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    started = time.monotonic()
    sys.stdout.write("\nlan preset, 0.5-1 ms one way\n\n")
    sys.stdout.write("\n".join(table([2, 3, 10, 20, 40, 100], [0.0, 0.1, 0.5], seeds, LAN, Path())) + "\n")
    sys.stdout.write("\nwan preset, 100-300 ms one way\n\n")
    sys.stdout.write("\n".join(table([3, 10, 40], [0.0, 0.1], seeds, WAN, Path(delay_s=0.1, jitter_s=0.2))) + "\n")
    sys.stdout.write(f"\n{time.monotonic() - started:.0f} s\n")


if __name__ == "__main__":
    main()
