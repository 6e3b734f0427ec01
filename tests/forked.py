"""Commands in processes of their own that do not import torch and transformers again, two to four seconds of CPU each.

They are forked from a process that has imported them and done nothing else, started by a worker's first call. `run`
runs a command to its end; `launch` starts a node as `meshmoe.cli.local_mesh.start_process` does, with a session,
signals, sockets and an end of its own. What is different from a real start is that all of one worker hash strings
alike, and that huggingface_hub read the environment when it was imported: it does so again. A node's network namespace
is entered. Nodes with another command before theirs, and whatever else tests start, start as anywhere.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

import pytest

from meshmoe.cli import local_mesh

_COMMANDS = [
    "meshmoe.cli.main",
    "meshmoe.cli.model",
    "meshmoe.cli.model_fetch",
    "meshmoe.model.checkpoint",
    "meshmoe.model.hub_parts",
    "meshmoe.model.portions",
    "huggingface_hub.file_download",
    "psutil",
    "transformers.models.qwen3_moe.modeling_qwen3_moe",
    "tests.forked",
]
_NODES = [
    *_COMMANDS,
    "meshmoe.cli.join",
    "meshmoe.node.node",
    "meshmoe.engine.lean.scheduler",
    "meshmoe.api.server",
]
IN_NETWORK = ("ip", "netns", "exec")
_CLONE_NEWNET = 0x40000000
_context = multiprocessing.get_context("forkserver")
_lock = threading.Lock()
"""multiprocessing looks after all processes whenever one is started or asked for, and is not made for threads."""


def _ensure_running(preloaded: list[str]) -> None:
    """Whoever comes first says what is imported; others' commands import the rest themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as the command does before it imports anything
        _context.set_forkserver_preload(preloaded)
        forkserver.ensure_running()


def run(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    """Run ``meshmoe`` with these arguments; returns what `subprocess.run` would."""
    with tempfile.TemporaryDirectory() as directory:
        said = [Path(directory, name) for name in ("out", "err")]
        process = Forked(arguments, environment, said)
        try:
            code = process.wait(120)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            raise
        out, err = (path.read_text() for path in said)
        return subprocess.CompletedProcess(list(arguments), code, out, err)


def launch(
    prefix: Sequence[str], arguments: Sequence[str], environment: Mapping[str, str], log_path: Path, stdin: int
) -> local_mesh.Running:
    """Start a node; see `meshmoe.cli.local_mesh.start_process`."""
    if prefix and tuple(prefix[:-1]) != IN_NETWORK:
        return local_mesh.start_process(prefix, arguments, environment, log_path, stdin)
    terminal = "" if stdin == subprocess.DEVNULL else os.ttyname(stdin)
    return Forked(arguments, environment, [log_path, log_path], terminal, *prefix[-1:], preloaded=_NODES)


class Forked:
    """A process, with what is needed of `subprocess.Popen`."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        said: Sequence[Path],
        terminal: str = "",
        network: str = "",
        preloaded: list[str] = _COMMANDS,
    ) -> None:
        self.args = list(arguments)
        for path in said:
            path.touch()  # whoever looks before the process writes finds it
        with _lock:
            _ensure_running(preloaded)
            given = (self.args, dict(environment), said, terminal, network)
            self._process = _context.Process(target=_main, args=given, daemon=True)
            self._process.start()
            assert self._process.pid is not None
            self.pid = self._process.pid

    def poll(self) -> int | None:
        with _lock:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        ends_s = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > ends_s:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)


def _main(arguments: list[str], environment: dict[str, str], said: Sequence[Path], terminal: str, network: str) -> None:
    local_mesh.prepare()
    os.setsid()
    if network:
        with Path("/run/netns", network).open() as space:
            if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(terminal or os.devnull, os.O_RDWR | os.O_NOCTTY), 0)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    importlib.reload(sys.modules["huggingface_hub.constants"])
    sys.argv = ["meshmoe", *arguments]
    from meshmoe.cli.main import main

    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
