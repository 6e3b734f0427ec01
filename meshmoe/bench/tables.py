"""Results of the placement comparison as Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from meshmoe.bench.paper import Outcome
from meshmoe.bench.placement import Gap, Score

OURS = "meshmoe"


def score_tables(scores: Iterable[Score]) -> str:
    """One table for each trace, capacity and link: rounds / hit / ms a token, by policy and redundancy."""
    groups: dict[tuple[str, str, str], list[Score]] = defaultdict(list)
    for score in scores:
        groups[score.trace, score.capacity, score.link].append(score)
    parts = []
    for (trace, capacity, link), members in groups.items():
        redundancies = sorted({score.redundancy for score in members})
        policies = list(dict.fromkeys(score.policy for score in members))
        found = {(score.policy, score.redundancy): score for score in members}
        rows = [[policy, *(_words(found[policy, redundancy]) for redundancy in redundancies)] for policy in policies]
        parts.append(f"{trace}, {capacity} capacity, {link}\n\n" + table(["", *(f"{r:g}" for r in redundancies)], rows))
    return "\n\n".join(parts)


def _words(score: Score) -> str:
    return (
        f"{score.rounds:.2f} / {score.hit:.2f} / {score.token_bytes / 1024:.1f} / "
        f"{score.token_ms:.2f} / {score.token_p99_ms:.2f}"
    )


def verdicts(scores: Sequence[Score]) -> str:
    """In how many cells ours is best, and how many rounds it saves."""
    by_cell: dict[tuple[str, float, str, str], dict[str, Score]] = defaultdict(dict)
    for score in scores:
        by_cell[score.trace, score.redundancy, score.capacity, score.link][score.policy] = score
    lines = []
    for what in ("token_ms", "request_ms"):
        worse = []
        for cell, found in by_cell.items():
            best = min((s for s in found.values() if s.policy != OURS), key=lambda s: float(getattr(s, what)))
            ratio = getattr(found[OURS], what) / getattr(best, what)
            if ratio > 1.0005:
                worse.append(f"{cell[0]} {cell[1]:g} {cell[2]} {cell[3]}: {100 * (ratio - 1):.1f} % over {best.policy}")
        lines.append(
            f"{what}: below or equal every other policy in {len(by_cell) - len(worse)} of {len(by_cell)} cells"
        )
        lines += [f"- {line}" for line in worse]
    rows = []
    for redundancy in sorted({score.redundancy for score in scores}):
        row = [f"{redundancy:g}"]
        for other in ("DanceMoE", "EPLB global", "EPLB hierarchical"):
            saved = [
                1 - found[OURS].rounds / found[other].rounds for cell, found in by_cell.items() if cell[1] == redundancy
            ]
            row.append(f"{100 * min(saved):.0f} to {100 * max(saved):.0f} %")
        rows.append(row)
    header = ["redundancy", "fewer rounds than DanceMoE", "EPLB global", "EPLB hierarchical"]
    return "\n".join(lines) + "\n\n" + table(header, rows)


def gap_table(gaps: Sequence[Gap]) -> str:
    """Costs over the optimum's."""
    rows = [
        [
            f"{gap.redundancy:g}",
            f"{gap.layers} layers, {gap.tokens} tokens a node",
            gap.policy,
            f"{gap.ratio:.3f}",
            f"{gap.bound_ratio:.3f}",
            "yes" if gap.solved else "no",
        ]
        for gap in gaps
    ]
    return table(["redundancy", "case", "policy", "cost / best found", "cost / bound", "proven optimal"], rows)


def paper_table(outcomes: Iterable[Outcome]) -> str:
    """Seconds a request: mean / 99th percentile / mean to the first token, by setting and policy."""
    groups: dict[tuple[str, str, str, str, str], list[Outcome]] = defaultdict(list)
    for one in outcomes:
        evenness = f"{one.evenness:g}" if one.evenness else "recorded"
        setting = (one.model, str(one.servers), f"{one.mbit_per_s}", evenness, f"{one.arrival_s:g} s")
        groups[setting].append(one)
    policies = list(dict.fromkeys(one.policy for members in groups.values() for one in members))
    rows = [
        [*setting, *(f"{one.mean_s:.2f} / {one.p99_s:.2f} / {one.first_mean_s:.2f}" for one in members)]
        for setting, members in groups.items()
    ]
    return table(["model", "servers", "Mbit/s", "evenness", "arrivals", *policies], rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
