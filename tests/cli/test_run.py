from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable

import pytest
from click.testing import Result

from meshmoe.core.errors import CapacityError, ExpertUnavailableError
from tests.api.scripted import TEXT, tokenizer
from tests.api.serving import Served
from tests.cli.conftest import start

Invoke = Callable[..., Result]


def text_of(tokens: int) -> str:
    return str(tokenizer().decode(tokenizer().encode(TEXT)[:tokens]))


def test_continues_a_text(served: Served, invoke: Invoke) -> None:
    result = invoke("run", "hello", "--max-tokens", "5")
    assert (result.exit_code, result.stdout, result.stderr) == (0, text_of(5) + "\n", "")
    (request,) = served.service.requests
    assert request.prompt_ids == tuple(tokenizer().encode("hello"))
    assert request.sampling.temperature == 0


def test_all_flags_arrive(served: Served, invoke: Invoke) -> None:
    flags = "--max-tokens 3 --temperature 0.5 --top-p 0.9 --top-k 7 --min-p 0.1 --repetition-penalty 1.5 --seed 9"
    flags += " --frequency-penalty 0.5 --presence-penalty -1"
    result = invoke("run", "hello", *flags.split(), "--stop", "a", "--stop", "b c", "--ignore-eos")
    assert result.exit_code == 0
    sampling = served.service.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (3, 0.5, 0.9, 7)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.1, 1.5, 9)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.5, -1)
    assert (sampling.stop, sampling.ignore_eos) == (("a", "b c"), True)


def test_chat(served: Served, invoke: Invoke) -> None:
    result = invoke("run", "--chat", "hello", "--max-tokens", "2")
    assert result.stdout == text_of(2) + "\n"
    assert tokenizer().decode(served.service.requests[0].prompt_ids) == "User: hello\nAssistant:"


def test_standard_input_as_it_is(served: Served, invoke: Invoke) -> None:
    assert invoke("run", "-", "--max-tokens", "1", input="a line\nand one more\n").exit_code == 0
    assert tokenizer().decode(served.service.requests[0].prompt_ids) == "a line\nand one more\n"


def test_standard_input_that_is_no_text(served: Served, invoke: Invoke) -> None:
    result = invoke("run", "-", input=b"ab\xff")
    assert (result.exit_code, result.stderr) == (2, "meshmoe: standard input is not UTF-8 text (byte 2)\n")


@pytest.mark.parametrize("flags", [(), ("--chat",)])
def test_json(served: Served, invoke: Invoke, flags: tuple[str, ...]) -> None:
    result = invoke("run", "hello", "--json", "--max-tokens", "5", *flags)
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    answer = json.loads(line)
    assert answer["text"] == text_of(5)
    assert answer["token_ids"] == tokenizer().encode(TEXT)[:5]
    assert answer["finish_reason"] == "length"
    assert answer["model"] == "edge-12m"
    assert set(answer["timings"]) == {"queue_s", "prefill_s", "decode_s", "remote_wait_s", "tokens_per_s", "total_s"}
    assert (answer["rounds_per_token"], answer["hit_ratio"], answer["sent_bytes"]) == (2.0, 0.75, 1000)
    assert answer["completion_tokens"] == 5


def test_the_nodes_errors_are_ours(served: Served, invoke: Invoke) -> None:
    served.service.not_ready = CapacityError("the mesh lacks 12 MiB")
    result = invoke("run", "hello")
    assert (result.exit_code, result.stderr) == (4, "meshmoe: the mesh lacks 12 MiB\n")
    served.service.not_ready = None
    result = invoke("run", "word " * 2000)
    assert result.exit_code == 2
    assert "maximum context length is 512" in result.stderr


def test_an_error_half_way(served: Served, invoke: Invoke) -> None:
    served.service.fail_after = (3, ExpertUnavailableError("expert 3/17 is gone"))
    result = invoke("run", "hello")
    assert result.exit_code == 1
    assert result.stderr == "meshmoe: expert 3/17 is gone\n"


def test_streams_and_is_interrupted_quietly(served: Served) -> None:
    served.service.delay_s = 0.02
    with start("run", "hello", "--max-tokens", "400") as process:
        assert process.stdout is not None
        first = process.stdout.read(3)
        assert text_of(4).startswith(first.decode())
        assert served.service.active == 1
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip()) == (130, b"")
    served.wait_until(lambda: served.service.active == 0)


def test_a_closed_pipe_stops_it_quietly(served: Served) -> None:
    served.service.delay_s = 0.005
    with start("run", "hello", "--max-tokens", "450") as process:
        assert process.stdout is not None
        process.stdout.read(3)
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(5) in (1, 141)
    served.wait_until(lambda: served.service.active == 0)


def test_the_node_dies_half_way(served: Served) -> None:
    served.service.delay_s = 0.02
    with start("run", "hello", "--max-tokens", "400") as process:
        assert process.stdout is not None
        process.stdout.read(3)
        served.stop()
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (1, b"meshmoe: this node is stopping\n")


def test_text_that_stdout_cannot_encode(served: Served) -> None:
    served.service.text = "größer als ∞"
    with start("run", "x", "--max-tokens", "4", env={"PYTHONIOENCODING": "ascii"}) as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")
    assert b"?" in out


def test_a_terminal_gets_no_control_characters_and_a_summary(served: Served) -> None:
    served.service.text = "a\x1b]0;title\x07b "
    count = len(tokenizer().encode(served.service.text))
    import os
    import pty

    leader, follower = pty.openpty()
    with start("run", "x", "--max-tokens", str(count)) as piped:
        assert b"\x1b]0" in piped.communicate(timeout=30)[0]
    environment = {**os.environ, "TERM": "xterm"}
    command = ["meshmoe.cli.main", "run", "x", "--max-tokens", str(count)]
    import sys

    process = subprocess.Popen([sys.executable, "-m", *command], stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += os.read(leader, 4096)
        except OSError:
            break
    os.close(leader)
    assert process.wait(10) == 0
    assert b"\x1b]0;" not in shown
    assert "a\N{REPLACEMENT CHARACTER}]0;title".encode() in shown
    assert b"rounds a token, hit ratio 75%" in shown
