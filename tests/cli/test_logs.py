from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

PROGRAM = """
import logging, sys
from meshmoe.cli.logs import Log
log = Log(sys.argv[1], verbose=False, node="desk")
log.bind(generation=7)
custody = logging.getLogger("meshmoe.node.custody_driver")
custody.info("migration of %s", "3/17", extra={"expert": "3/17", "peer": "shop", "migration": 5, "epoch": 2})
custody.debug("not shown")
logging.getLogger("other").info("not shown")
console = log.console()
console.print("[bold]desk[/] serves")
console.print("  a long line " + "x " * 300)
try:
    raise ValueError("with\\ntwo lines")
except ValueError:
    custody.exception("it broke")
"""


def run(log_format: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, log_format], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_lines() -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in run("json")]
    migration, serves, long, broke = lines
    stamp = migration.pop("time")
    assert stamp.endswith("Z")
    assert migration == {
        "level": "info",
        "module": "meshmoe.node.custody_driver",
        "message": "migration of 3/17",
        "node": "desk",
        "generation": 7,
        "expert": "3/17",
        "peer": "shop",
        "migration": 5,
        "epoch": 2,
    }
    assert (serves["message"], serves["module"]) == ("desk serves", "meshmoe.join")
    assert len(long["message"]) > 600
    assert "ValueError: with\ntwo lines" in broke["traceback"]


def test_a_pipe_gets_json_and_may_have_words() -> None:
    assert [json.loads(line)["node"] for line in run("auto")] == ["desk"] * 4
    human = run("human")
    assert human[0].endswith("INFO meshmoe.node.custody_driver: migration of 3/17")
    assert human[1] == "desk serves"
