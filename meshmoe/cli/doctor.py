"""``meshmoe doctor``: what is wrong with this box or its mesh, and what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click
import msgspec
from rich.console import Console

from meshmoe.cli.health import Finding, box_findings, mesh_findings
from meshmoe.cli.options import socket_option

_MARKS = {"ok": ("ok  ", "green"), "note": ("note", "yellow"), "fail": ("FAIL", "bold red")}


@click.command()
@click.option("--ports/--no-ports", default=True, help="Try the three ports of peers, and whether one's own are free.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@socket_option
def doctor(ports: bool, as_json: bool, socket_path: Path) -> None:
    """Look at this box, its node and its mesh; say what is wrong and what to do.

    Exit code 1 if something has to be done.

    \b
      meshmoe doctor               before the first start, or when something is odd
      meshmoe doctor --json        for monitoring
    """
    findings = [*box_findings(socket_path, ports=ports), *mesh_findings(socket_path, ports=ports)]
    if as_json:
        sys.stdout.write(msgspec.json.encode(findings).decode() + "\n")
    else:
        _show(findings)
    if any(finding.state == "fail" for finding in findings):
        sys.exit(1)


def _show(findings: Iterable[Finding]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        mark, style = _MARKS[finding.state]
        console.print(f"[{style}]{mark}[/]", end="  ")
        console.print(f"{finding.what}: {finding.text}", markup=False)
        if finding.advice:
            console.print(f"      {finding.advice}", markup=False, style="dim" if finding.state == "ok" else None)
