"""The command ``llm``, a client that somebody else wrote and that reads its endpoint from a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.scripted import TEXT, ScriptedService
from tests.api.serving import Served

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
KEY = "a-key-of-this-test"


@pytest.fixture
def llm(service: ScriptedService, tmp_path: Path):
    with Served(service, tmp_path / "m.sock", ("127.0.0.1", 0), api_key=KEY) as served:
        assert served.addresses is not None
        assert served.addresses.http is not None
        (tmp_path / "extra-openai-models.yaml").write_text(
            f"- model_id: mesh\n  model_name: default\n  supports_schema: true\n"
            f"  api_base: http://127.0.0.1:{served.addresses.http[1]}/v1\n  api_key_name: mesh\n"
        )

        def run(*arguments: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "llm", *arguments, "-m", "mesh", "--key", key, "--no-log"],
                env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

        yield run


def test_llm_streams(llm) -> None:
    answer = llm("prompt", "What is a mesh?", "-o", "max_tokens", "5", "-o", "temperature", "0")
    assert answer.returncode == 0, answer.stderr
    assert TEXT.startswith(answer.stdout.strip())
    assert answer.stdout.strip()


def test_llm_asks_with_a_schema(llm, service: ScriptedService) -> None:
    service.text = '{"name": "x"}'
    answer = llm("prompt", "Who?", "--schema", json.dumps(SCHEMA), "-o", "max_tokens", "6")
    assert answer.returncode == 0, answer.stderr
    schema = json.loads(service.requests[-1].sampling.json_schema or "null")
    assert schema["properties"] == SCHEMA["properties"]


def test_llm_shows_our_error(llm) -> None:
    answer = llm("prompt", "What?", key="x" * 20)
    assert answer.returncode == 1
    assert "the API key is wrong" in answer.stderr
