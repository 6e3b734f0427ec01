"""``meshmoe token`` and ``meshmoe expel``: who may come into the mesh, and who must go."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import msgspec
from rich.console import Console
from rich.table import Table

from meshmoe.cli.client import NodeClient
from meshmoe.cli.options import socket_option
from meshmoe.core.errors import ConfigError
from meshmoe.node.mesh_keeper import TokenStatus

_UNITS_S = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@click.group()
def token() -> None:
    """Make, list and revoke join tokens.

    \b
      meshmoe token new                     good for a day
      meshmoe token new --for 2h --label "Ann's laptop"
      meshmoe token list
      meshmoe token revoke 1f3a             lets nobody in by it any more; who is in stays in
      meshmoe token rotate                  new secret for the mesh: all tokens are void, members stay
    """


@token.command()
@socket_option
@click.option("--for", "lifetime", default="1d", show_default=True, metavar="TIME", help="30m, 2h, 7d, or ever.")
@click.option("--label", default="", metavar="TEXT", help="What you call it.")
def new(socket_path: Path, lifetime: str, label: str) -> None:
    """Make a token: one word that lets a box join."""
    body = {"lifetime_s": _lifetime_s(lifetime), "label": label}
    made = msgspec.convert(_post(socket_path, "/mesh/tokens", body), TokenStatus)
    click.echo(made.word)
    if Console().is_terminal:
        click.echo(f"On the other box: meshmoe join --peer {made.word}", err=True)
        click.echo(f"Whoever has this word may join {_until(made.expires_s)}: send it as you would a key.", err=True)


@token.command("list")
@socket_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_tokens(socket_path: Path, as_json: bool) -> None:
    """List the tokens that were issued; never the words themselves."""
    answer = msgspec.json.decode(NodeClient(socket_path).get("/mesh/tokens"))
    if as_json:
        click.echo(msgspec.json.encode(answer))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("token", "label", "made on", "admits"):
        table.add_column(heading)
    for one in msgspec.convert(answer["tokens"], list[TokenStatus]):
        table.add_row(one.id, one.label, one.by, "nobody: revoked" if one.revoked else _until(one.expires_s))
    Console(highlight=False).print(table)


@token.command()
@socket_option
@click.argument("token_id", metavar="TOKEN")
def revoke(socket_path: Path, token_id: str) -> None:
    """Let nobody in by this token any more; the first characters of its id do."""
    NodeClient(socket_path).delete(f"/mesh/tokens/{quote(token_id, safe='')}")
    click.echo("revoked; who has joined by it stays: `meshmoe expel NODE` strikes a member out")


@token.command()
@socket_option
def rotate(socket_path: Path) -> None:
    """Give the mesh a new secret: all tokens are void, members stay and notice nothing."""
    _post(socket_path, "/mesh/rotate", None)
    click.echo("the mesh has a new secret; tokens of before admit nobody any more")


@click.command()
@socket_option
@click.argument("node", metavar="NODE")
def expel(socket_path: Path, node: str) -> None:
    """Strike a member out for good, and give the others a new secret."""
    _post(socket_path, "/mesh/expel", {"node": node})
    click.echo(f"{node} is out; tokens of before admit nobody any more")


def _post(socket_path: Path, path: str, body: Any) -> Any:
    with NodeClient(socket_path).post(path, body) as lines:
        return msgspec.json.decode("".join(lines))


def _lifetime_s(text: str) -> int:
    if text in ("ever", "forever"):
        return 0
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdecimal() and unit in _UNITS_S and int(number) > 0):
        raise ConfigError(f"--for: {text!r} is no time: write it like 30m, 2h, 7d, or ever")
    return int(number) * _UNITS_S[unit]


def _until(expires_s: int) -> str:
    if not expires_s:
        return "for ever"
    left_s = expires_s - time.time()
    if left_s <= 0:
        return "nobody: expired"
    hours = left_s / 3600
    return f"for {hours:.0f} hours" if hours >= 2 else f"for {max(1, round(left_s / 60))} minutes"
