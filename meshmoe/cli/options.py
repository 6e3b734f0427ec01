"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from meshmoe.api.socket_path import SOCKET_VARIABLE, default_socket_path

Command = TypeVar("Command", bound=Callable[..., Any])


def socket_option(command: Command) -> Command:
    """``--socket PATH``: the parameter ``socket_path``, never None."""
    return click.option(
        "--socket",
        "socket_path",
        type=click.Path(path_type=Path),
        envvar=SOCKET_VARIABLE,
        default=default_socket_path,
        metavar="PATH",
        help=f"Unix socket of the node.  [${SOCKET_VARIABLE}; default: meshmoe/meshmoe.sock in $XDG_RUNTIME_DIR]",
    )(command)


def sampling_options(command: Command) -> Command:
    """The flags of sampling; absent ones are None, so that the node's defaults apply to them."""
    for option in reversed(
        (
            click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, metavar="N"),
            click.option(
                "--temperature",
                type=click.FloatRange(0, 2),
                default=0.0,
                show_default=True,
                metavar="T",
                help="0 always takes the likeliest token.",
            ),
            click.option("--top-k", type=click.IntRange(0), metavar="K", help="Keep the K likeliest tokens."),
            click.option("--top-p", type=click.FloatRange(0, 1), metavar="P", help="Keep the likeliest share P."),
            click.option("--min-p", type=click.FloatRange(0, 1), metavar="P", help="Drop below P of the likeliest."),
            click.option("--repetition-penalty", type=click.FloatRange(0.01, 10), metavar="R"),
            click.option("--frequency-penalty", type=click.FloatRange(-2, 2), metavar="R"),
            click.option("--presence-penalty", type=click.FloatRange(-2, 2), metavar="R"),
            click.option("--seed", type=int, metavar="N", help="Makes sampling repeatable."),
            click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be repeated."),
            click.option("--ignore-eos", is_flag=True, help="Go on past the end-of-text token."),
        )
    ):
        command = option(command)
    return command
