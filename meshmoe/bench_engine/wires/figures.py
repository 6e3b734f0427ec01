"""What the forwarding of a run's packets did, and how well: the links are only as good as that."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from meshmoe.bench_engine.wires.forwarding import BYTES, FULL, LATE, LOST, PACKETS, TALLY_WORDS


class WireFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Until some moment.

    Attributes:
        packets: That have arrived.
        mebibytes: In them.
        lost: By the links' loss.
        full: Dropped by queues that were too long.
        late_p50_us: By how much packets arrived later than their link would have had them.
        late_p99_us: The same.
        processor_us: That a packet took of the forwarding process.
    """

    packets: int
    mebibytes: float
    lost: int
    full: int
    late_p50_us: int
    late_p99_us: int
    processor_us: float

    def words(self) -> str:
        """A line for people."""
        return (
            f"links: {self.packets:,} packets, {self.mebibytes:,.1f} MiB, late by {self.late_p50_us} us "
            f"(99 %: {self.late_p99_us}), {self.processor_us:.1f} us of a processor each; {self.lost} lost, "
            f"{self.full} dropped by full queues"
        )


def read_figures(path: Path, processor_s: float) -> WireFigures:
    """Read a tally.

    Args:
        path: The file that is counted up in.
        processor_s: What the process has taken.
    """
    tally = np.fromfile(path, np.int64, TALLY_WORDS)
    packets = int(tally[PACKETS])
    passed = np.cumsum(tally[LATE:])
    return WireFigures(
        packets=packets,
        mebibytes=float(tally[BYTES]) / (1 << 20),
        lost=int(tally[LOST]),
        full=int(tally[FULL]),
        late_p50_us=int(np.searchsorted(passed, 0.50 * passed[-1])),
        late_p99_us=int(np.searchsorted(passed, 0.99 * passed[-1])),
        processor_us=1e6 * processor_s / max(1, packets),
    )
