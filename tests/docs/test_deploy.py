"""The unit and the container recipe start a node that exists, with flags that it has."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path

from tests.docs.test_commands import check

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"


def test_the_unit() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "meshmoe.service", encoding="utf-8")
    service = unit["Service"]
    command = service["ExecStart"].replace("%h/.local/bin/", "").replace(" $MESHMOE_FLAGS", "")
    assert command.startswith("meshmoe ")
    check(command)
    # A node hands over for 600 s at most, and then lets its own requests end for 30 s.
    assert int(service["TimeoutStopSec"]) >= 630
    assert unit["Install"]["WantedBy"] == "default.target"


def test_the_container() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    steps = dict(re.findall(r"^(ENTRYPOINT|STOPSIGNAL|USER|VOLUME|EXPOSE|ENV) +(.*)$", text, re.MULTILINE))
    check(" ".join(json.loads(steps["ENTRYPOINT"])))
    assert steps["STOPSIGNAL"] == "SIGTERM"
    assert steps["EXPOSE"] == "7337 7338 7339"
    (version,) = re.findall(r"torch==(\S+)", text)
    assert f"torch=={version}" in (ROOT / "constraints.txt").read_text()
    (python,) = re.findall(r"FROM \S+/python:(\S+)-slim", text)
    assert python == "3.11"
    assert (ROOT / "constraints.txt").exists()
    health = json.loads(re.search(r"HEALTHCHECK .*CMD (\[.*\])", text)[1])  # type: ignore[index]
    check(" ".join(health))
