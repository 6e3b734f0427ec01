"""How a status looks in a terminal, in a narrow one, and in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from meshmoe.core.units import format_duration, format_rate, format_size
from meshmoe.node.status import CoverageStatus, CustodyStatus, NodeStatus, PeerStatus, ServingStatus, TransferStatus

PIPE_WIDTH_CHARS = 240
"""A pipe has no width; this is wide enough for every table, which then takes only what it needs."""

_STATE_STYLES = {"alive": "green", "suspect": "yellow", "joining": "cyan", "dead": "red", "left": "dim"}

_LEFT = {"node", "state", "address", "software", "on its way", "from", ""}

# Least important first: the order in which columns give way in a narrow terminal.
_NODES_GIVE_WAY = ("software", "received", "sent", "calls", "rate", "address", "rtt", "held", "experts")
_TRANSFERS_GIVE_WAY = ("", "from", "done")

Row = dict[str, RenderableType]


def show_status(status: NodeStatus) -> None:
    """Print ``status``."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if not console.is_terminal:
        console.width = PIPE_WIDTH_CHARS
    for part in _parts(console, status):
        console.print(part)


def _parts(console: Console, status: NodeStatus) -> Iterator[RenderableType]:
    yield Text.assemble(
        (status.node, "bold"),
        f"  {status.phase}, up {_uptime(status.uptime_s)}, {format_size(status.rss_bytes)} of memory, ",
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
    if status.custody is not None:
        yield from _custody(status.custody)
    yield Text()
    yield _fitted(console, [_node_cells(peer) for peer in status.peers], _NODES_GIVE_WAY)
    if status.transfers:
        yield Text()
        yield _fitted(console, [_transfer_cells(console, each) for each in status.transfers], _TRANSFERS_GIVE_WAY)
    faults = {name: count for name, count in sorted(status.faults.items()) if count}
    if faults:
        yield Text("faults  " + ", ".join(f"{name} {count}" for name, count in faults.items()), "yellow")
    if status.join_command:
        yield Text()
        yield Text(f"join from another box:  {status.join_command}", "dim")


def _uptime(uptime_s: float) -> str:
    minutes, seconds = divmod(int(uptime_s), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


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
        f"         {serving.completion_tokens} tokens, {serving.tokens_per_s:.1f} tok/s, hit ratio {hit}, "
        f"{rounds} rounds a token, {serving.expert_calls_served} expert calls for others"
    )


def _coverage(coverage: CoverageStatus) -> Iterator[Text]:
    whole = coverage.covered == coverage.total
    line = (
        f"  {coverage.covered} of {coverage.total} experts have a holder, {coverage.replicas_mean:.2f} on average, "
        f"holder map {coverage.holder_map_digest[:12]}"
    )
    yield Text.assemble(("covered" if whole else "not covered", "green" if whole else "red"), line)
    if coverage.missing_bytes:
        yield Text(f"         the mesh lacks {format_size(coverage.missing_bytes)} of capacity", "red")
    missing = [
        (layer, [index for index, holders in enumerate(experts) if not holders])
        for layer, experts in enumerate(coverage.holders_by_layer)
    ]
    for layer, indices in missing:
        if indices:
            yield Text(f"         layer {layer} lacks {_ranges(indices)}", "red")


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
        yield Text(f"         lost: {shown} ({custody.lost_total} in all): no present node holds or stores them", "red")


def _ranges(numbers: list[int]) -> str:
    """``[1, 2, 3, 7]`` as ``1-3, 7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _fitted(console: Console, rows: list[Row], give_way: tuple[str, ...]) -> Table:
    """A table with as many columns as the terminal has room for; those in ``give_way`` go first, in that order."""
    names = list(rows[0]) if rows else []
    unlimited = console.options.update(width=10_000)
    while True:
        table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, show_edge=False)
        for name in names:
            table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(row[name] for name in names))
        too_wide = Measurement.get(console, unlimited, table).maximum > console.width
        expendable = [name for name in give_way if name in names]
        if not (too_wide and expendable):
            return table
        names.remove(expendable[0])


def _node_cells(peer: PeerStatus) -> Row:
    share = peer.held_bytes / peer.capacity_bytes if peer.capacity_bytes else 0.0
    return {
        "node": Text(f"{peer.node} *" if peer.is_self else peer.node, "bold" if peer.is_self else ""),
        "state": Text(peer.state, _STATE_STYLES.get(peer.state, "")),
        "address": Text(peer.address),
        "experts": Text(str(peer.experts_held)),
        "held": Text(f"{format_size(peer.held_bytes)} / {format_size(peer.capacity_bytes)}"),
        "used": Text(f"{share:.0%}"),
        "rtt": Text("-" if peer.rtt_ms is None else format_duration(peer.rtt_ms / 1000)),
        "rate": Text("-" if peer.rate_bytes_per_s is None else format_rate(peer.rate_bytes_per_s)),
        "calls": Text(str(peer.expert_calls)),
        "sent": Text(format_size(peer.sent_bytes)),
        "received": Text(format_size(peer.received_bytes)),
        "software": Text(peer.software),
    }


def _transfer_cells(console: Console, transfer: TransferStatus) -> Row:
    total_bytes = max(transfer.total_bytes, 1)
    return {
        "on its way": Text(transfer.what),
        "from": Text(transfer.source),
        # A pipe gets no bar: it would be a line of the same character for any share.
        "": ProgressBar(total=total_bytes, completed=transfer.done_bytes, width=20) if console.is_terminal else Text(),
        "share": Text(f"{transfer.done_bytes / total_bytes:.0%}"),
        "done": Text(f"{format_size(transfer.done_bytes)} / {format_size(transfer.total_bytes)}"),
    }
