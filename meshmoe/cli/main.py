"""The command ``meshmoe``: finds the subcommand, and is the one place where errors become a line and an exit code.

Subcommands are imported when they are called, because some of them need torch, which takes seconds to import.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import click

from meshmoe import __version__
from meshmoe.cli.failures import guarded


class _Lazy(NamedTuple):
    """Where a subcommand is, and its line in the overview."""

    module: str
    attribute: str
    summary: str


_COMMANDS = {
    "join": _Lazy("meshmoe.cli.join", "join", "Start a node: begin a mesh, or join one."),
    "run": _Lazy("meshmoe.cli.run", "run", "Continue a text, or answer a chat message."),
    "status": _Lazy("meshmoe.cli.status", "status", "Show the mesh as this box's node sees it."),
    "leave": _Lazy("meshmoe.cli.leave", "leave", "Hand this node's experts over, then stop it."),
    "token": _Lazy("meshmoe.cli.token", "token", "Make, list and revoke the tokens that let boxes join."),
    "expel": _Lazy("meshmoe.cli.token", "expel", "Strike a member out of the mesh for good."),
    "demo": _Lazy("meshmoe.cli.demo", "demo", "Run a whole mesh on this box and check what it writes."),
    "plan": _Lazy("meshmoe.cli.plan", "plan", "Predict what a mesh would do, for each placement policy."),
    "chaos": _Lazy("meshmoe.cli.chaos.command", "chaos", "Do bad things to a mesh of real processes, and check it."),
    "trace": _Lazy("meshmoe.cli.trace", "trace", "Record what this box's node is used for."),
    "doctor": _Lazy("meshmoe.cli.doctor", "doctor", "Say what is wrong with this box or its mesh, and what to do."),
    "model": _Lazy("meshmoe.cli.model", "model", "Look at a checkpoint, or get one."),
    "bench": _Lazy("meshmoe.cli.bench", "bench", "Measure placement, kernels, decoding, a mesh under load."),
    "sim": _Lazy("meshmoe.cli.sim", "sim", "Run simulated meshes with faults and check every promise."),
}

_HELP = """Serve one Mixture-of-Experts language model from a mesh of boxes, none of which can hold it alone.

\b
  meshmoe join                            begin a mesh (with the bundled model)
  meshmoe join --peer mm1-kZKt...         join it from another box, with the token that the first one shows
  meshmoe run "The mesh is"               continue a text
  meshmoe run --chat "What is a mesh?"    ask something
  meshmoe status                          who is here, who holds what, how fast
  meshmoe leave                           hand over and stop

Programs talk to the node of their box through a Unix socket with the OpenAI API; see docs/api.md.
"""


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are asked for, with our own way to fail."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of a first session."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand."""
        lazy = _COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        command = getattr(importlib.import_module(lazy.module), lazy.attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.summary) for name, lazy in _COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run; in standalone mode every failure is one line on standard error and an exit code."""

        def call() -> Any:
            return super(LazyGroup, self).main(args, "meshmoe", complete_var, standalone_mode=False, **extra)

        return sys.exit(guarded(call)) if standalone_mode else call()


@click.group(cls=LazyGroup, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="meshmoe", message="%(prog)s %(version)s")
def cli() -> None:
    """The group itself does nothing."""


def main() -> None:
    """Entry point of the script ``meshmoe``."""
    cli()


if __name__ == "__main__":
    main()
