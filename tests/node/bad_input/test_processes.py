"""Processes of their own: a whole failure of `meshmoe join`, and flags that are refused before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.node.bad_input.support import BOUND_S, Models, the_line


@pytest.mark.mesh
def test_a_whole_process(surroundings: Path, models: Models) -> None:
    flags = ("--name", "newcomer", "--listen", "127.0.0.1:0", "--threads", "1", "--capacity", "1KiB")
    command = [sys.executable, "-m", "meshmoe.cli.main", "join", *flags, "--model", str(models.good)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * BOUND_S, check=False)
    assert done.stdout == ""
    assert "is too small for one expert" in the_line(done.stderr, done.returncode, 4)


def test_help_and_wrong_flags_need_no_torch(surroundings: Path) -> None:
    script = (
        "import sys\nfrom meshmoe.cli.main import cli\n"
        "for flags in ['--help'], ['--http', 'x'], ['--peer', 'x']:\n"
        "    try:\n        cli(['join', *flags])\n    except SystemExit:\n        pass\n"
        "print([name for name in ('torch', 'transformers', 'zmq', 'hypercorn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=BOUND_S, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(done.stderr.splitlines()) == 2
