"""Commands in a process of their own that does not import torch and transformers again: two seconds of CPU each.

`run` forks it from a process that has imported them and done nothing else, started by a worker's first call.
What is different from a real start is that huggingface_hub read the environment when it was imported: it does so again.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

import pytest

_PRELOADED = [
    "meshmoe.cli.main",
    "meshmoe.cli.model",
    "meshmoe.cli.model_fetch",
    "meshmoe.model.checkpoint",
    "meshmoe.model.hub_parts",
    "meshmoe.model.portions",
    "huggingface_hub.file_download",
    "psutil",
    "transformers.models.qwen3_moe.modeling_qwen3_moe",
    "tests.model.forked",
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_PRELOADED)


def run(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    """Run ``meshmoe`` with these arguments; returns what `subprocess.run` would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as the command does before it imports anything
        forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as directory:
        said = [Path(directory, name) for name in ("out", "err")]
        process = _context.Process(target=_main, args=(list(arguments), dict(environment), said))
        process.start()
        process.join(120)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(list(arguments), 120)
        out, err = (path.read_text() for path in said)
        return subprocess.CompletedProcess(list(arguments), process.exitcode, out, err)


def _main(arguments: list[str], environment: dict[str, str], said: list[Path]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    importlib.reload(sys.modules["huggingface_hub.constants"])
    sys.argv = ["meshmoe", *arguments]
    from meshmoe.cli.main import main

    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
