"""How a command fails: one line on standard error and an exit code, never a traceback unless MESHMOE_DEBUG is set."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from meshmoe.api.cause import cause
from meshmoe.core.errors import CapacityError, MeshmoeError

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_INTERNAL = 70
"""128 + SIGINT and 128 + SIGPIPE, as shells have it; 70 is EX_SOFTWARE of sysexits.h."""


def guarded(call: Callable[[], Any]) -> int:
    """Run a command.

    Args:
        call: Does what the user asked for; click has parsed nothing yet.

    Returns:
        The exit code; what went wrong has been said.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a model writes may be more than a terminal's encoding has; a question mark is better than no text.
        sys.stdout.reconfigure(errors="replace")
    try:
        result = call()
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        return _report(error)


def _report(error: BaseException) -> int:
    """Say what went wrong; returns the exit code."""
    if os.environ.get("MESHMOE_DEBUG"):
        traceback.print_exception(error)
    if _is_interrupt(error):
        return EXIT_INTERRUPTED
    error = cause(error)
    if isinstance(error, BrokenPipeError):
        # The reader of our output has gone; the interpreter would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    if isinstance(error, MemoryError):
        _say("this box has no memory left: free some, or give less with --capacity and --kv-cache")
        return CapacityError.exit_code
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "meshmoe"
        _say(f"{error.format_message().rstrip('.')}: see `{command} --help`")
        return error.exit_code
    if isinstance(error, click.ClickException):
        _say(error.format_message())
        return error.exit_code
    if isinstance(error, MeshmoeError):
        _say(str(error))
        return error.exit_code
    _say(f"internal error: {type(error).__name__}: {error} (MESHMOE_DEBUG=1 shows where)")
    return EXIT_INTERNAL


def _is_interrupt(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(KeyboardInterrupt) is not None
    return isinstance(error, KeyboardInterrupt | click.Abort)


def _say(message: str) -> None:
    print(f"meshmoe: {' '.join(message.split())}", file=sys.stderr)
