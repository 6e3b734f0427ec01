"""What a chaos run came to: a table, and a timeline as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from rich.console import Console
from rich.table import Table

from meshmoe.cli.chaos.load import OUTCOMES, Load, Request
from meshmoe.cli.chaos.plan import KINDS, Fault

COLOURS = {
    "kill": "#b22", "wipe": "#822", "stop": "#d80", "leave": "#07a", "partition": "#608", "loss": "#a6c",
    "delay": "#c9d", "disk-full": "#862", "noise": "#999", "stranger": "#777", "corrupt": "#444",
}  # fmt: skip
OUTCOME_COLOURS = {
    "finished": "#393", "refused": "#cc3", "failed": "#e80", "cut": "#88a", "wrong": "#f0f", "hung": "#f00",
}  # fmt: skip


@dataclass
class Findings:
    """What was checked at the end.

    Attributes:
        seed, duration_s, nodes: Of the run.
        injected: Faults that happened, by kind.
        left_out: Faults of the plan that did not.
        garbage_parcels: Handed over by peers that send garbage.
        lost_experts: Of the model, that no node has; must be 0. None if the run broke before they could be counted.
        agreed_after_s: From the last fault until all agreed on who holds what and nothing moved; None if never.
        memory_growth: Resident memory at the end over that after the first minute, the largest of all nodes; None if
            no process has lived for long enough.
        descriptor_growth: Open descriptors at the end less those after the first minute, the largest of all nodes.
        problems: In words; a run without any has kept every promise.
    """

    seed: int
    duration_s: float
    nodes: int
    injected: dict[str, int] = field(default_factory=dict)
    left_out: int = 0
    garbage_parcels: int = 0
    lost_experts: int | None = None
    agreed_after_s: float | None = None
    memory_growth: float | None = None
    descriptor_growth: int | None = None
    problems: list[str] = field(default_factory=list)


def show(console: Console, findings: Findings, load: Load) -> None:
    """Print it."""
    counts = load.counts
    table = Table(title="requests", title_justify="left", box=None, pad_edge=False)
    table.add_column("outcome")
    table.add_column("number", justify="right")
    table.add_row("sent", str(len(load.requests)))
    for outcome in OUTCOMES:
        table.add_row(outcome, str(counts[outcome]))
    console.print(table)
    for outcome in ("refused", "failed"):
        words = sorted({r.why for r in load.requests if r.outcome == outcome})
        for text in words[:5]:
            console.print(f"  {outcome}: {text}", markup=False, soft_wrap=True)
    table = Table(title="faults", title_justify="left", box=None, pad_edge=False)
    for heading in ("kind", "times", "what"):
        table.add_column(heading)
    for kind, times in sorted(findings.injected.items()):
        table.add_row(kind, str(times), KINDS[kind].what)
    console.print(table)
    if findings.left_out:
        console.print(f"left out: {findings.left_out}, whose node was gone or whose time was over", soft_wrap=True)
    lost = "not counted" if findings.lost_experts is None else str(findings.lost_experts)
    agreed = "never" if findings.agreed_after_s is None else f"{findings.agreed_after_s:.0f} s after the last fault"
    console.print(f"experts lost: {lost}; all agree on who holds what: {agreed}", soft_wrap=True)
    grown = "memory and descriptors: not measured, no process lived for long enough"
    if findings.memory_growth is not None and findings.descriptor_growth is not None:
        grown = (
            f"memory: at most {findings.memory_growth:.2f} times that of the first minute; descriptors: at most "
            f"{findings.descriptor_growth:+d}"
        )
    console.print(f"{grown}; garbage parcels handed over: {findings.garbage_parcels}", soft_wrap=True)
    for problem in findings.problems:
        console.print(f"PROBLEM: {problem}", style="bold red", markup=False)
    console.print("every promise was kept" if not findings.problems else "promises were broken")


def timeline(
    findings: Findings, nodes: Sequence[str], spans: Sequence[tuple[Fault, float, float]], requests: Sequence[Request]
) -> str:
    """Draw the run: a row a node with its faults above and its requests below, an axis of seconds."""
    left, width, row, top = 70, 1100, 46, 40
    height = top + row * len(nodes) + 70
    total_s = max([findings.duration_s, *(end for _, _, end in spans), *(r.ended_s for r in requests)])

    def x(at_s: float) -> float:
        return left + width * at_s / total_s

    title = f"meshmoe chaos, seed {findings.seed}, {findings.nodes} nodes, {findings.duration_s:.0f} s"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {height}" font-size="11">',
        "<style>text { font-family: sans-serif }</style>",
        f'<rect width="{left + width + 20}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="18" font-size="14">{escape(title)}</text>',
    ]
    step_s = 30 if total_s <= 400 else 60
    for second in range(0, int(total_s) + 1, step_s):
        parts.append(
            f'<line x1="{x(second):.1f}" y1="{top - 8}" x2="{x(second):.1f}" y2="{height - 60}" stroke="#eee"/>'
        )
        parts.append(f'<text x="{x(second):.1f}" y="{top - 10}" fill="#777" text-anchor="middle">{second}</text>')
    places = {name: top + row * i for i, name in enumerate(nodes)}
    for name, y in places.items():
        parts.append(f'<text x="8" y="{y + 20}">{escape(name)}</text>')
        parts.append(f'<line x1="{left}" y1="{y + row - 4}" x2="{left + width}" y2="{y + row - 4}" stroke="#ccc"/>')
    for fault, began_s, ended_s in spans:
        y, bar = places[fault.node], max(2.0, x(ended_s) - x(began_s))
        label = f"{fault.kind} {began_s:.0f}-{ended_s:.0f} s"
        parts.append(
            f'<rect x="{x(began_s):.1f}" y="{y}" width="{bar:.1f}" height="14" fill="{COLOURS[fault.kind]}"><title>'
            f"{escape(label)}</title></rect>"
        )
    for request in requests:
        y, bar = places[request.node], max(1.0, x(request.ended_s) - x(request.began_s))
        parts.append(
            f'<rect x="{x(request.began_s):.1f}" y="{y + 18}" width="{bar:.1f}" height="16" opacity="0.5" '
            f'fill="{OUTCOME_COLOURS[request.outcome]}"/>'
        )
    for line, colours in enumerate((COLOURS, OUTCOME_COLOURS)):
        for i, (name, colour) in enumerate(colours.items()):
            at_x, at_y = left + 95 * i, height - 40 + 20 * line
            parts.append(f'<rect x="{at_x}" y="{at_y}" width="10" height="10" fill="{colour}"/>')
            parts.append(f'<text x="{at_x + 14}" y="{at_y + 9}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>\n"])
