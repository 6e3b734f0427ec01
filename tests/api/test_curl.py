from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from tests.api.scripted import TEXT, tokenizer
from tests.api.serving import Served

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def curl(served: Served, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["curl", "-sS", "--max-time", "20", "--unix-socket", str(served.path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_streams_a_chat(served: Served) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, "stream": True}
    done = curl(served, "-N", "http://localhost/v1/chat/completions", "-d", json.dumps(body))
    assert done.returncode == 0
    data = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line]
    assert data[-1] == "[DONE]"
    text = "".join(json.loads(d)["choices"][0]["delta"].get("content", "") for d in data[:-1])
    assert text == tokenizer().decode(tokenizer().encode(TEXT)[:5])


def test_being_killed_cancels(served: Served) -> None:
    served.service.delay_s = 0.01
    body = json.dumps({"prompt": "x", "max_tokens": 400, "stream": True})
    command = ["curl", "-sSN", "--unix-socket", str(served.path), "http://localhost/v1/completions", "-d", body]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        assert served.service.active == 1
        running.kill()
    assert served.wait_until(lambda: served.service.active == 0) < 0.5


def test_a_large_body_waits_for_its_100_continue(served: Served) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 1, "padding": "y" * (2 << 20)})
    done = subprocess.run(
        ["curl", "-sS", "-i", "--unix-socket", str(served.path), "http://localhost/v1/completions", "-d", "@-"],
        input=body,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "HTTP/1.1 200" in done.stdout
