"""``meshmoe trace``: record what a running node is used for."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click
import numpy as np

from meshmoe.cli.client import NodeClient
from meshmoe.cli.options import socket_option
from meshmoe.core.errors import ConfigError


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE.npz", help="Written anew."
)
@click.option("--window", type=click.IntRange(2, 512), default=64, show_default=True, metavar="N", help="Tokens.")
@click.option("--kind", metavar="NAME", help="Of this text, as `domain` in topology files.  [default: the node's name]")
@click.option("--add", is_flag=True, help="Keep what is in the file: traces of several nodes in one.")
@socket_option
def trace(out: Path, window: int, kind: str | None, add: bool, socket_path: Path) -> None:
    """Record what the node on this box is used for.

    Writes the routing of the tokens that it has written lately, as `meshmoe plan --trace` reads it: experts by window,
    token, layer. No text is in it.
    """
    data = NodeClient(socket_path).get(f"/mesh/trace?window={window}")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        ((node, sets),) = archive.items()
    kept: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int16]]] = {}
    if add and out.exists():
        try:
            with np.load(out, allow_pickle=False) as archive:
                kept = {name: archive[name] for name in archive.files}
        except (OSError, ValueError) as error:
            raise ConfigError(f"--add: cannot read {out}: {error}") from None
    kept[kind or node] = sets
    np.savez_compressed(out, allow_pickle=False, **kept)
    windows, tokens, layers, top_k = sets.shape
    sys.stdout.write(f"{out}: {windows} windows of {tokens} tokens, {layers} layers, top-{top_k}, as {kind or node}\n")
