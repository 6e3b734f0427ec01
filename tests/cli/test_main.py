from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import trio
from click.testing import Result

from meshmoe import __version__
from meshmoe.cli import failures
from meshmoe.core.errors import CapacityError, ConfigError
from tests.cli.conftest import start

Invoke = Callable[..., Result]


def test_help_shows_how(invoke: Invoke) -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for words in ("meshmoe join --peer", "meshmoe run --chat", "status", "leave", "demo"):
        assert words in result.output
    assert "TODO" not in result.output


@pytest.mark.parametrize("command", ["run", "status", "leave"])
def test_every_command_has_help(invoke: Invoke, command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "--socket" in result.output


def test_version(invoke: Invoke) -> None:
    assert invoke("--version").output == f"meshmoe {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("frobnicate",), "No such command"),
        (("run",), "Missing argument"),
        (("run", "x", "--temperature", "9"), "temperature"),
        (("run", "x", "--max-tokens", "none"), "max-tokens"),
        (("status", "--frob"), "--frob"),
    ],
)
def test_wrong_usage_is_one_line(invoke: Invoke, arguments: tuple[str, ...], words: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("meshmoe: ")
    assert words in line
    assert "--help`" in line


@pytest.mark.parametrize("command", [("run", "x"), ("status",), ("status", "--json"), ("leave",)])
@pytest.mark.parametrize("there", [False, True])
def test_no_node(invoke: Invoke, tmp_path: Path, command: tuple[str, ...], there: bool) -> None:
    path = tmp_path / "m.sock"
    if there:
        path.write_text("")
    result = invoke(*command, "--socket", str(path))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"meshmoe: no node answers at {path}: start one with `meshmoe join`, or name its socket with --socket\n"
    )


def test_a_socket_path_that_is_too_long(invoke: Invoke) -> None:
    result = invoke("status", "--socket", "/tmp/" + "x" * 200)
    assert result.exit_code == 2
    assert "a Unix socket allows 107" in result.stderr


def call_failing_with(error: BaseException) -> int:
    def call() -> None:
        raise error

    return failures.guarded(call)


def test_errors_are_one_line_with_their_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert call_failing_with(ConfigError("a flag\n is wrong")) == 2
    assert call_failing_with(CapacityError("too small")) == 4
    assert call_failing_with(click.ClickException("odd")) == 1
    assert capsys.readouterr().err == "meshmoe: a flag is wrong\nmeshmoe: too small\nmeshmoe: odd\n"


def test_errors_out_of_nurseries(capsys: pytest.CaptureFixture[str]) -> None:
    async def fail() -> None:
        raise CapacityError("too small")

    async def main() -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(fail)

    assert failures.guarded(lambda: trio.run(main)) == 4
    assert capsys.readouterr().err == "meshmoe: too small\n"


def test_interrupts_are_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert call_failing_with(KeyboardInterrupt()) == 130
    assert call_failing_with(click.Abort()) == 130
    inner = BaseExceptionGroup("in a nursery", [KeyboardInterrupt(), ValueError("consequence")])
    assert call_failing_with(BaseExceptionGroup("in another", [inner])) == 130
    assert capsys.readouterr().err == ""


def test_a_bug_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESHMOE_DEBUG", raising=False)
    assert call_failing_with(ZeroDivisionError("oh")) == 70
    expected = "meshmoe: internal error: ZeroDivisionError: oh (MESHMOE_DEBUG=1 shows where)\n"
    assert capsys.readouterr().err == expected
    monkeypatch.setenv("MESHMOE_DEBUG", "1")
    assert call_failing_with(ZeroDivisionError("oh")) == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_closed_pipe_is_quiet() -> None:
    with start("--help") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""


HEAVY = ("torch", "transformers", "trio", "numpy", "zmq", "httpx", "starlette")


@pytest.mark.parametrize("module", ["main", "status", "leave", "run", "client", "status_view", "options"])
def test_nothing_heavy_is_imported(module: str) -> None:
    code = f"import sys, meshmoe.cli.{module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("arguments", [("--help",), ("status",)])
def test_starts_in_less_than_trio_alone_is_imported_in(arguments: tuple[str, ...]) -> None:
    """About 0.05 s and 0.08 s where importing trio takes 0.14; torch would be 1.4. Processor time, in turns."""

    def used_s(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {**os.environ, "MESHMOE_SOCKET": "/nowhere/m.sock"}
        subprocess.run([sys.executable, *command], env=environment, capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    turns = [(used_s("-m", "meshmoe.cli.main", *arguments), used_s("-c", "import trio, click")) for _ in range(3)]
    assert min(own_s for own_s, _ in turns) < min(trio_s for _, trio_s in turns)
