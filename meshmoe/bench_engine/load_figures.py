"""What a load came to, in numbers: rates, waits, percentiles; medians over turns, and ratios between servers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median

import msgspec

from meshmoe.bench_engine.load import Outcome
from meshmoe.bench_engine.openai_stream import Answer


class LoadFigure(msgspec.Struct, frozen=True, kw_only=True):
    """A load on one server, or on the nodes of one mesh; of several turns each field is the median.

    Attributes:
        requests: Sent.
        refused: Answered with 429.
        failed: Not answered to the end for another reason.
        tokens: Written, of all answers.
        tokens_per_s: Those, a second from the first request to the last token.
        first_p50_ms: From a request to its first token.
        first_p99_ms: The same.
        gap_p50_ms: Between two tokens of a stream; only those while prompts were read beside them, if any were.
        gap_p99_ms: The same.
        gap_max_ms: The same.
        token_ms: From the first token of a stream to its last, a token, mean of all streams.
        beside_p50_ms: From a prompt beside the streams to its first token; 0 without.
        client_late_p99_ms: By how much the measuring client sent requests too late.
        loop_late_p99_ms: Lateness of our nodes' event loops in the last half minute, the worst node; None of others.
        rounds_per_token: Layers a decoded token that waited for a peer; None of others.
        hit_ratio: Share of expert calls served where the request was; None of others.
        accepted: Share of drafted tokens that were right; None of others, and without drafts.
        tokens_per_pass: Decoded tokens that a forward pass told; None of others.
        remote_wait_ms: Of a decoded token and its share of the prompt, with nothing to do but to wait for peers.
        processor_ms: A token of the processes that are measured, prompts included; None where they are not known.
    """

    requests: int
    refused: int
    failed: int
    tokens: int
    tokens_per_s: float
    first_p50_ms: float
    first_p99_ms: float
    gap_p50_ms: float
    gap_p99_ms: float
    gap_max_ms: float
    token_ms: float
    beside_p50_ms: float = 0.0
    client_late_p99_ms: float = 0.0
    loop_late_p99_ms: float | None = None
    rounds_per_token: float | None = None
    hit_ratio: float | None = None
    accepted: float | None = None
    tokens_per_pass: float | None = None
    remote_wait_ms: float | None = None
    processor_ms: float | None = None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def summarise(outcome: Outcome, loop_late_p99_ms: float | None = None, processor_s: float | None = None) -> LoadFigure:
    """The figure of one turn; ``processor_s`` is what the servers took for it."""
    whole = [answer for answer in outcome.answers if not answer.error]
    since_s = outcome.beside_began_s or 0.0
    first_ms = [1e3 * (a.arrivals_s[0] - a.asked_s) for a in whole if a.arrivals_s]
    pairs = [pair for a in whole for pair in zip(a.arrivals_s, a.arrivals_s[1:], strict=False)]
    gaps_ms = [1e3 * (after - before) for before, after in pairs if after >= since_s]
    tokens = sum(len(answer.arrivals_s) for answer in outcome.answers)
    beside_ms = [1e3 * (a.arrivals_s[0] - a.asked_s) for a in outcome.beside if a.arrivals_s and not a.error]
    return LoadFigure(
        requests=len(outcome.answers),
        refused=sum(answer.status == 429 for answer in outcome.answers),
        failed=sum(bool(answer.error) and answer.status != 429 for answer in outcome.answers),
        tokens=tokens,
        tokens_per_s=tokens / outcome.took_s if outcome.took_s > 0 else 0.0,
        first_p50_ms=percentile(first_ms, 0.5),
        first_p99_ms=percentile(first_ms, 0.99),
        gap_p50_ms=percentile(gaps_ms, 0.5),
        gap_p99_ms=percentile(gaps_ms, 0.99),
        gap_max_ms=max(gaps_ms, default=0.0),
        token_ms=mean([_token_ms(a) for a in whole if len(a.arrivals_s) > 1] or [0.0]),
        beside_p50_ms=percentile(beside_ms, 0.5),
        client_late_p99_ms=1e3 * percentile(outcome.late_s, 0.99),
        loop_late_p99_ms=loop_late_p99_ms,
        processor_ms=1e3 * processor_s / tokens if processor_s is not None and tokens else None,
        **msgspec.structs.asdict(_reported(whole)),
    )


def medians(figures: Sequence[LoadFigure]) -> LoadFigure:
    """Field by field; counts of refused and failed requests are summed."""
    found: dict[str, float | None] = {}
    for name in LoadFigure.__struct_fields__:
        values = [value for figure in figures if (value := getattr(figure, name)) is not None]
        found[name] = median(values) if values else None
    for name in ("refused", "failed"):
        found[name] = sum(getattr(figure, name) for figure in figures)
    return msgspec.convert(found, LoadFigure, strict=False)


def load_table(figures: dict[str, LoadFigure]) -> str:
    """A Markdown table, a line a contestant, and beneath it the ratios to the first one."""
    lines = [
        (
            "| | tok/s | first token p50 / p99, ms | between tokens p50 / p99 / most, ms | beside, ms "
            "| loop late p99, ms | refused, failed |"
        ),
        "|---" * 7 + "|",
    ]
    for name, f in figures.items():
        late = "" if f.loop_late_p99_ms is None else f"{f.loop_late_p99_ms:.1f}"
        beside = f"{f.beside_p50_ms:.0f}" if f.beside_p50_ms else ""
        lines.append(
            f"| {name} | {f.tokens_per_s:,.1f} | {f.first_p50_ms:.1f} / {f.first_p99_ms:.1f} "
            f"| {f.gap_p50_ms:.2f} / {f.gap_p99_ms:.2f} / {f.gap_max_ms:.1f} | {beside} | {late} "
            f"| {f.refused}, {f.failed} |"
        )
    return "\n".join([*lines, *_ratios(figures)])


def _ratios(figures: dict[str, LoadFigure]) -> list[str]:
    (first, base), *others = figures.items()
    lines = []
    for name, f in others:
        if f.tokens_per_s and f.first_p50_ms and f.gap_p99_ms:
            lines.append(
                f"\n{first} / {name}: {base.tokens_per_s / f.tokens_per_s:.2f} times the tokens a second, "
                f"{base.first_p50_ms / f.first_p50_ms:.2f} times the wait for the first token, "
                f"{base.gap_p99_ms / f.gap_p99_ms:.2f} times the 99th percentile between tokens"
            )
    return lines


def _token_ms(answer: Answer) -> float:
    return 1e3 * (answer.arrivals_s[-1] - answer.arrivals_s[0]) / (len(answer.arrivals_s) - 1)


class _Reported(msgspec.Struct, frozen=True):
    """Of requests, as our own nodes report them: see `LoadFigure`."""

    rounds_per_token: float | None = None
    hit_ratio: float | None = None
    remote_wait_ms: float | None = None
    accepted: float | None = None
    tokens_per_pass: float | None = None


def _reported(answers: Sequence[Answer]) -> _Reported:
    reports = [answer.report for answer in answers if answer.report]

    def total(name: str) -> float:
        return float(sum(report[name] for report in reports))

    tokens = sum(report["decode_tokens"] for report in reports)
    if not tokens:
        return _Reported()
    local, remote, drafted = total("expert_calls_local"), total("expert_calls_remote"), total("drafted_tokens")
    return _Reported(
        rounds_per_token=total("decode_rounds") / tokens,
        hit_ratio=local / max(1.0, local + remote),
        remote_wait_ms=1e3 * total("remote_wait_s") / tokens,
        accepted=total("accepted_tokens") / drafted if drafted else None,
        tokens_per_pass=tokens / max(1.0, total("decode_steps")),
    )
