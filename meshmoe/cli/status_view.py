"""How a status looks in a terminal, in a narrow one, and in a pipe."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.text import Text

from meshmoe.cli.status_heat import heat_map
from meshmoe.cli.status_tables import (
    duration_words,
    ended_lines,
    exchange_lines,
    migrations_table,
    nodes_table,
    transfers_table,
)
from meshmoe.core.units import format_duration, format_size
from meshmoe.node.status import (
    AgreementStatus,
    CoverageStatus,
    CustodyStatus,
    LatencyStatus,
    NodeStatus,
    PlacementStatus,
    ServingStatus,
)

PIPE_WIDTH_CHARS = 240
"""A pipe has no width; this is wide enough for every table, which then takes only what it needs."""

_INDENT = " " * 9


def show_status(status: NodeStatus, *, experts: bool = False) -> None:
    """Print ``status``, or with ``experts`` the map of who holds which."""
    console = status_console()
    for part in heat_map(console, status) if experts else status_parts(console, status):
        console.print(part)


def status_console() -> Console:
    """Standard output: a terminal as it is, a pipe as wide as need be and without colours."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if not console.is_terminal:
        console.width = PIPE_WIDTH_CHARS
    return console


def status_parts(console: Console, status: NodeStatus) -> Iterator[RenderableType]:
    """What is printed one below the other."""
    yield Text.assemble(
        (status.node, "bold"),
        f"  {status.phase}, up {duration_words(status.uptime_s)}, {format_size(status.rss_bytes)} of memory, ",
        f"meshmoe {status.software}",
    )
    model = status.model
    if model is None:
        yield Text("model not known yet", "yellow")
    else:
        yield Text(
            f"{model.name}  {model.family} in {model.dtype}, {model.experts} experts in {model.moe_layers} layers "
            f"({format_size(model.expert_bytes_total)}), trunk {format_size(model.trunk_bytes)}, "
            f"context {model.context_tokens} tokens, digest {model.digest[:12]}"
        )
    yield from _serving(status.serving)
    if status.coverage is not None:
        yield from _coverage(status.coverage)
    if status.agreement is not None:
        yield _agreement(status.agreement)
    if status.custody is not None:
        yield from _custody(status.custody)
    if status.placement is not None:
        yield _placement(status.placement)
    if not status.secured:
        yield Text("open     connections are not encrypted, and any node may join (--insecure)", "yellow")
    yield Text()
    yield nodes_table(console, status)
    if status.migrations:
        yield Text()
        yield migrations_table(console, status.migrations)
    if status.transfers:
        yield Text()
        yield transfers_table(console, status.transfers)
    if status.placement is not None and status.placement.exchanges:
        yield Text()
        yield from exchange_lines(status.placement.exchanges)
    if status.migrations_ended:
        yield Text()
        yield from ended_lines(status.migrations_ended)
    faults = {name: count for name, count in sorted(status.faults.items()) if count}
    if faults:
        yield Text("faults  " + ", ".join(f"{name} {count}" for name, count in faults.items()), "yellow")
    if status.join_command:
        yield Text()
        yield Text(f"join from another box:  {status.join_command}", "dim")


def _serving(serving: ServingStatus) -> Iterator[Text]:
    counts = (
        f"{serving.active} active, {serving.queued} queued, {serving.finished} finished, {serving.failed} failed, "
        f"{serving.cancelled} cancelled"
    )
    if serving.ready:
        yield Text.assemble(("serving", "green"), f"  {counts}")
    else:
        yield Text.assemble(("not serving", "red"), f"  {serving.reason or 'no reason given'}; {counts}")
    hit = "-" if serving.hit_ratio is None else f"{serving.hit_ratio:.0%}"
    rounds = "-" if serving.rounds_per_token is None else f"{serving.rounds_per_token:.2f}"
    yield Text(
        f"{_INDENT}{serving.completion_tokens} tokens, {serving.tokens_per_s:.1f} tok/s a request, "
        f"{serving.tokens_per_s_now:.1f} tok/s now, hit ratio {hit}, {rounds} rounds a token, {_drafts(serving)}"
        f"{serving.expert_calls_served} expert calls for others"
    )
    yield from _latency(serving.latency)


def _drafts(serving: ServingStatus) -> str:
    if serving.acceptance is None or serving.tokens_per_pass is None or serving.drafted_per_pass is None:
        return ""
    return (
        f"{serving.tokens_per_pass:.2f} tokens a pass ({serving.acceptance:.0%} of {serving.drafted_per_pass:.1f} "
        "drafts right), "
    )


def _latency(latency: LatencyStatus) -> Iterator[Text]:
    parts = []
    for what, median_ms, p99_ms in (
        ("first token", latency.first_token_ms_p50, latency.first_token_ms_p99),
        ("each next", latency.token_ms_p50, latency.token_ms_p99),
    ):
        if median_ms is not None and p99_ms is not None:
            parts.append(f"{what} {format_duration(median_ms / 1000)} (p99 {format_duration(p99_ms / 1000)})")
    if parts:
        yield Text(_INDENT + ", ".join(parts))


def _coverage(coverage: CoverageStatus) -> Iterator[Text]:
    whole = coverage.covered == coverage.total
    replicas = Counter(len(holders) for experts in coverage.holders_by_layer for holders in experts if holders)
    spread = ", ".join(f"{count} with {n}" for n, count in sorted(replicas.items())) if len(replicas) > 1 else ""
    line = (
        f"  {coverage.covered} of {coverage.total} experts have a holder, {coverage.replicas_mean:.2f} on average"
        f"{spread and f' ({spread})'}, holder map {coverage.holder_map_digest[:12]}"
    )
    yield Text.assemble(("covered" if whole else "not covered", "green" if whole else "red"), line)
    if coverage.missing_bytes:
        yield Text(f"{_INDENT}the mesh lacks {format_size(coverage.missing_bytes)} of capacity", "red")
    missing = [
        (layer, [index for index, holders in enumerate(experts) if not holders])
        for layer, experts in enumerate(coverage.holders_by_layer)
    ]
    for layer, indices in missing:
        if indices:
            yield Text(f"{_INDENT}layer {layer} lacks {_ranges(indices)}", "red")


def _agreement(agreement: AgreementStatus) -> Text:
    if agreement.equal:
        return Text.assemble(("agreed", "green"), "   all present nodes see the same holders")
    return Text.assemble(("not agreed", "yellow"), f"  {', '.join(agreement.differ)} last told of other holders")


def _placement(placement: PlacementStatus) -> Text:
    if placement.rule != "exchange":
        return Text("placed   by the guardian rule, until there is demand to go by")
    state = "nothing left to gain" if placement.quiet else "exchanging"
    return Text(f"placed   by use, plan {placement.plan_version}, {state}, settled {placement.settled} times")


def _custody(custody: CustodyStatus) -> Iterator[Text]:
    parts = [f"{custody.experts} experts in this node's custody"]
    if custody.intakes:
        parts.append(f"{custody.intakes} on their way in")
    if custody.migrations:
        parts.append(f"{custody.migrations} migrations under way")
    if custody.given or custody.taken:
        parts.append(f"{custody.given} given and {custody.taken} taken since the start")
    yield Text("kept     " + ", ".join(parts))
    if custody.lost_total:
        shown = ", ".join(custody.lost[:8]) + (", ..." if custody.lost_total > 8 else "")
        yield Text(f"{_INDENT}lost: {shown} ({custody.lost_total} in all): no present node holds or stores them", "red")


def _ranges(numbers: list[int]) -> str:
    """``[1, 2, 3, 7]`` as ``1-3, 7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
