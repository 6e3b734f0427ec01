"""The tables of a status: as many columns as there is room for, bars where the terminal can draw them."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from meshmoe.core.units import format_duration, format_rate, format_size
from meshmoe.node.status import (
    ExchangeStatus,
    MigrationEndStatus,
    MigrationStatus,
    NodeStatus,
    PeerStatus,
    TransferStatus,
)

STATE_STYLES = {"alive": "green", "suspect": "yellow", "joining": "cyan", "dead": "red", "left": "dim"}

_RIGHT = {"experts", "held", "rtt", "rate", "speed", "calls", "sent", "received", "done"}

# Least important first: the order in which columns give way in a narrow terminal.
_NODES_GIVE_WAY = ("software", "received", "sent", "calls", "speed", "rate", "address", "rtt", "held", "experts")
_MOVES_GIVE_WAY = ("done", "how", "from", "share")

_BAR_CHARS = 10
_BARS_FROM_WIDTH_CHARS = 80
ENDED_SHOWN_MAX = 6

Row = dict[str, RenderableType]


def nodes_table(console: Console, status: NodeStatus) -> Table:
    """Who is here."""
    return _fitted(console, [_node_cells(console, peer) for peer in status.peers], _NODES_GIVE_WAY)


def transfers_table(console: Console, transfers: list[TransferStatus]) -> Table:
    """What is on its way to this node."""
    return _fitted(console, [_transfer_cells(console, each) for each in transfers], _MOVES_GIVE_WAY)


def migrations_table(console: Console, migrations: list[MigrationStatus]) -> Table:
    """What changes hands."""
    return _fitted(console, [_migration_cells(console, each) for each in migrations], _MOVES_GIVE_WAY)


def ended_lines(ended: list[MigrationEndStatus]) -> Iterator[Text]:
    """What has lately changed hands, or has not, and why not."""
    for each in ended[:ENDED_SHOWN_MAX]:
        what = _OUTCOMES.get(each.outcome, each.outcome + " {peer}").format(peer=each.peer)
        yield Text.assemble(
            (f"{duration_words(each.ago_s)} ago  ", "dim"),
            (f"expert {each.expert} {what}", "" if each.outcome in ("given", "taken") else "yellow"),
            f": {each.reason}" if each.reason else "",
        )


def exchange_lines(exchanges: list[ExchangeStatus]) -> Iterator[Text]:
    """The last changes of the plan, the latest first: why experts move."""
    for each in exchanges[: -ENDED_SHOWN_MAX - 1 : -1]:
        yield Text.assemble(
            (f"{duration_words(max(0.0, time.time() - each.at_s))} ago  ", "dim"),
            f"plan {each.plan_version} {f'with {each.partner}' if each.partner else 'alone'}: ",
            f"{len(each.adds)} experts more, {len(each.drops)} less here, ",
            (f"saves {each.gain_ms_per_token:.3g} ms a token", "green" if each.gain_ms_per_token > 0 else ""),
            f", {format_size(each.cost_bytes)} to move ({format_duration(each.cost_s)})" if each.cost_bytes else "",
        )


def _fitted(console: Console, rows: list[Row], give_way: tuple[str, ...]) -> Table:
    """A table with as many columns as the terminal has room for; those in ``give_way`` go first, in that order."""
    names = list(rows[0]) if rows else []
    unlimited = console.options.update(width=10_000)
    while True:
        table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, show_edge=False)
        for name in names:
            table.add_column(name, justify="right" if name in _RIGHT else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(row[name] for name in names))
        too_wide = Measurement.get(console, unlimited, table).maximum > console.width
        expendable = [name for name in give_way if name in names]
        if not (too_wide and expendable):
            return table
        names.remove(expendable[0])


def _bar(console: Console, share: float) -> Text:
    """``share`` as a bar and a percentage; the latter alone where the terminal cannot show the former."""
    number = f"{share:.0%}"
    if not console.is_terminal or console.options.ascii_only or console.width < _BARS_FROM_WIDTH_CHARS:
        return Text(number)
    full = round(min(1.0, max(0.0, share)) * _BAR_CHARS)
    return Text.assemble(("\u2588" * full, "blue"), ("\u2591" * (_BAR_CHARS - full), "dim"), f" {number:>4}")


def _node_cells(console: Console, peer: PeerStatus) -> Row:
    share = peer.held_bytes / peer.capacity_bytes if peer.capacity_bytes else 0.0
    return {
        "node": Text(f"{peer.node} *" if peer.is_self else peer.node, "bold" if peer.is_self else ""),
        "state": Text(peer.state, STATE_STYLES.get(peer.state, "")),
        "address": Text(peer.address),
        "experts": Text(str(peer.experts_held)),
        "held": Text(f"{format_size(peer.held_bytes)} / {format_size(peer.capacity_bytes)}"),
        "used": _bar(console, share),
        "rtt": Text("-" if peer.rtt_ms is None else format_duration(peer.rtt_ms / 1000)),
        "rate": Text("-" if peer.rate_bytes_per_s is None else format_rate(peer.rate_bytes_per_s)),
        "speed": Text(f"{1e6 / peer.expert_call_us:,.0f} calls/s" if peer.expert_call_us else "-"),
        "calls": Text(str(peer.expert_calls)),
        "sent": Text(format_size(peer.sent_bytes)),
        "received": Text(format_size(peer.received_bytes)),
        "software": Text(peer.software),
    }


def _transfer_cells(console: Console, transfer: TransferStatus) -> Row:
    return {
        "on its way": Text(transfer.what),
        "from": Text(transfer.source),
        "share": _bar(console, transfer.done_bytes / max(transfer.total_bytes, 1)),
        "done": Text(f"{format_size(transfer.done_bytes)} / {format_size(transfer.total_bytes)}"),
    }


def _migration_cells(console: Console, migration: MigrationStatus) -> Row:
    known = migration.total_bytes > 0
    return {
        "moving": Text(f"expert {migration.expert}"),
        "with": Text(f"{'to' if migration.direction == 'giving' else 'from'} {migration.peer}"),
        "how": Text(migration.state),
        "share": _bar(console, migration.done_bytes / migration.total_bytes) if known else Text(""),
        "done": Text(f"{format_size(migration.done_bytes)} / {format_size(migration.total_bytes)}" if known else ""),
    }


_OUTCOMES = {
    "given": "given to {peer}",
    "taken": "taken from {peer}",
    "kept": "kept, not given to {peer}",
    "forgotten": "not taken from {peer}",
}


def duration_words(duration_s: float) -> str:
    """``3 min 5 s``, ``2 d 2 h``: two units, as people say it."""
    minutes, seconds = divmod(int(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
