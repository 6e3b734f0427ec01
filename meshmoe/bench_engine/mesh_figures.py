"""A mesh under load: what its links alone would cost, and what is ours."""

from __future__ import annotations

import msgspec

from meshmoe.bench_engine.load_figures import LoadFigure


class MeshFigure(msgspec.Struct, frozen=True, kw_only=True):
    """One contestant in one case.

    Attributes:
        case: How many streams.
        contestant: Who.
        load: What was measured.
        rtt_ms: Round trip of the links that the calls took, as the topology file has it; 0 for other servers.
        link_ms: Rounds a token times the round trip.
        overhead: Share of a token's time that is not `link_ms`: computing, queueing, encoding, waking up.
    """

    case: str
    contestant: str
    load: LoadFigure
    rtt_ms: float = 0.0

    @property
    def link_ms(self) -> float:
        """See above."""
        return (self.load.rounds_per_token or 0.0) * self.rtt_ms

    @property
    def overhead(self) -> float:
        """See above."""
        return 1 - self.link_ms / self.load.token_ms if self.load.token_ms else 0.0


def mesh_table(figures: list[MeshFigure]) -> str:
    """A Markdown table, and beneath it the ratios to the first contestant of each case."""
    lines = [
        (
            "| streams | | tok/s in all | ms a token | tokens a pass, drafts right | rounds a token | rounds x RTT, ms "
            "| everything else | hit ratio | first token p50 / p99, ms | processor ms a token | loop late p99, ms "
            "| refused, failed |"
        ),
        "|---" * 13 + "|",
    ]
    for f in figures:
        load = f.load
        ours = [""] * 6
        if load.rounds_per_token is not None and load.hit_ratio is not None:
            late = "" if load.loop_late_p99_ms is None else f"{load.loop_late_p99_ms:.1f}"
            right = "" if load.accepted is None else f", {load.accepted:.0%}"
            ours = [
                f"{load.tokens_per_pass or 1.0:.2f}{right}",
                f"{load.rounds_per_token:.2f}",
                f"{f.link_ms:.2f}",
                f"{f.overhead:.0%}",
                f"{load.hit_ratio:.0%}",
                late,
            ]
        processor = "" if load.processor_ms is None else f"{load.processor_ms:.2f}"
        lines.append(
            f"| {f.case} | {f.contestant} | {load.tokens_per_s:,.1f} | {load.token_ms:.2f} "
            f"| {' | '.join(ours[:5])} "
            f"| {load.first_p50_ms:.1f} / {load.first_p99_ms:.1f} | {processor} | {ours[5]} "
            f"| {load.refused}, {load.failed} |"
        )
    return "\n".join([*lines, *_ratios(figures)])


def _ratios(figures: list[MeshFigure]) -> list[str]:
    lines, base = [], figures[0]
    for f in figures:
        if f.case != base.case:
            base = f
        elif f is not base and f.load.tokens_per_s and f.load.first_p50_ms:
            lines.append(
                f"\n{f.case}: {base.contestant} / {f.contestant}: "
                f"{base.load.tokens_per_s / f.load.tokens_per_s:.2f} times the tokens a second, "
                f"{base.load.first_p50_ms / f.load.first_p50_ms:.2f} times the wait for the first token"
            )
    return lines
