"""The load generator against a scripted server: what it sends, what it times, what it makes of failures."""

import contextlib
import json
import os
import time
from typing import cast

import pytest
import trio

from meshmoe.bench_engine.load import Outcome, TimedRequest, poisson_due_s, run_load
from meshmoe.bench_engine.load_figures import load_table, medians, percentile, summarise
from meshmoe.bench_engine.mesh_figures import MeshFigure, mesh_table
from meshmoe.bench_engine.openai_stream import Answer, Server, parse_server
from meshmoe.bench_engine.texts import OPENINGS, characters_for, long_text, short_prompt
from meshmoe.cli.bench_contest import Contestant, drafting_ways
from meshmoe.cli.local_mesh import LocalNode
from meshmoe.core.errors import ConfigError

REPORT = {
    "decode_steps": 4,
    "drafted_tokens": 0,
    "accepted_tokens": 0,
    "decode_tokens": 4,
    "decode_rounds": 6,
    "expert_calls_local": 3,
    "expert_calls_remote": 1,
    "remote_wait_s": 0.5,
}


class Scripted:
    """A server of HTTP/1.1 that answers every request by what `answer` says, and keeps the bodies."""

    def __init__(self, answer):
        self.answer = answer
        self.bodies = []

    async def __call__(self, stream):
        received = b""
        while b"\r\n\r\n" not in received:
            received += await stream.receive_some(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += await stream.receive_some(65536)
        self.bodies.append(json.loads(body))
        with contextlib.suppress(trio.BrokenResourceError):  # the client may go away in the middle
            await self.answer(stream, self.bodies[-1])


async def send_events(stream, events, pause_s=0.0):
    await stream.send_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    for event in events:
        data = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
        # In two pieces: an event need not come whole.
        for part in (data[:9], data[9:]):
            await stream.send_all(b"%x\r\n%s\r\n" % (len(part), part))
        await trio.sleep(pause_s)
    await stream.send_all(b"0\r\n\r\n")


def run(answer, requests, beside=None):
    async def main():
        scripted = Scripted(answer)
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, scripted, [listener])
            server = Server("scripted", "127.0.0.1", listener.socket.getsockname()[1])
            timed = [TimedRequest(server, *request) for request in requests]
            prompts = None if beside is None else lambda: ((server, prompt) for prompt in beside)
            with trio.fail_after(10):
                outcome = await run_load(timed, prompts)
            nursery.cancel_scope.cancel()
        return scripted, outcome

    return trio.run(main)


async def our_answer(stream, body):
    tokens = [{"choices": [{"text": "x", "meshmoe": {"token_ids": ids}}]} for ids in ([5], [6, 7], [8])]
    end = {"choices": [], "usage": {"prompt_tokens": 9}, "meshmoe": REPORT}
    await send_events(stream, [*tokens, end, "[DONE]"], 0.02)


def test_tokens_are_timed_and_counted_by_their_ids():
    scripted, outcome = run(our_answer, [("one", 4)])
    (answer,) = outcome.answers
    assert answer.error == ""
    assert answer.ids == [5, 6, 7, 8]
    assert answer.prompt_tokens == 9
    assert answer.report == REPORT
    first, second, third, fourth = answer.arrivals_s
    assert second == third
    assert 0.01 < second - first < 5
    assert fourth > third
    (body,) = scripted.bodies
    assert (body["prompt"], body["max_tokens"], body["temperature"], body["stream"]) == ("one", 4, 0, True)


def test_another_server_sends_a_token_an_event():
    async def answer(stream, body):
        events = [{"choices": [{"text": text}]} for text in ("a", "b", "")]
        await send_events(stream, [*events, "[DONE]"])

    _, outcome = run(answer, [("one", 2)])
    assert len(outcome.answers[0].arrivals_s) == 2
    figure = summarise(outcome)
    assert figure.tokens == 2
    assert figure.rounds_per_token is None


def test_what_fails_is_counted_and_does_not_end_the_load():
    async def answer(stream, body):
        if body["prompt"] == "busy":
            text = json.dumps({"error": {"message": "come back"}}).encode()
            await stream.send_all(b"HTTP/1.1 429 No\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text))
        elif body["prompt"] == "broken":
            await stream.aclose()
        elif body["prompt"] == "fails later":
            await send_events(stream, [{"choices": [{"text": "a"}]}, {"error": {"message": "lost"}}])
        elif body["prompt"] == "nonsense":
            await send_events(stream, ["{"])
        else:
            await our_answer(stream, body)

    _, outcome = run(answer, [(prompt, 4) for prompt in ("busy", "broken", "fails later", "nonsense", "fine")])
    assert [bool(answer.error) for answer in outcome.answers] == [True] * 4 + [False]
    assert outcome.answers[0].error == "come back"
    assert outcome.answers[2].error == "lost"
    figure = summarise(outcome)
    assert (figure.requests, figure.refused, figure.failed) == (5, 1, 3)
    assert figure.rounds_per_token == 1.5
    assert figure.hit_ratio == 0.75


def test_requests_go_out_when_they_are_due_whatever_became_of_the_earlier_ones():
    came_s = []

    async def answer(stream, body):
        came_s.append(trio.current_time())
        while len(came_s) < 2:  # the first is not answered before the second has come
            await trio.sleep(0.01)
        await our_answer(stream, body)

    _, outcome = run(answer, [("a", 4, 0.0), ("b", 4, 0.1)])
    assert came_s[1] - came_s[0] > 0.08
    assert outcome.took_s > 0.1


def test_prompts_beside_begin_with_the_streams_and_end_with_them():
    async def answer(stream, body):
        if body["prompt"].startswith("long"):
            await send_events(stream, [{"choices": [{"text": "x"}]}], 0.02)
        else:
            await send_events(stream, [{"choices": [{"text": "x"}]}] * 5, 0.05)

    _, outcome = run(answer, [("short", 5)], (f"long {i}" for i in range(1000)))
    assert 2 <= len(outcome.beside) < 1000
    assert outcome.beside_began_s >= outcome.answers[0].arrivals_s[0]
    figure = summarise(outcome)
    assert figure.beside_p50_ms > 0
    assert figure.gap_p50_ms > 0


def test_poisson_arrivals_have_their_rate_and_their_seed():
    due_s = poisson_due_s(2000, 4.0, 7)
    assert due_s == sorted(due_s) == poisson_due_s(2000, 4.0, 7)
    assert 450 < due_s[-1] < 550
    assert due_s != poisson_due_s(2000, 4.0, 8)


def test_percentiles():
    assert percentile([], 0.5) == 0
    assert percentile([3.0], 0.99) == 3
    assert percentile([float(i) for i in range(100)], 0.99) == 99
    assert percentile([float(i) for i in range(100)], 0.5) == 50


def figure(tokens_per_s):
    answer = Answer(0.0, [1.0, 1.5, 2.0], report=REPORT)
    outcome = Outcome([answer], took_s=3 / tokens_per_s)
    return summarise(outcome, loop_late_p99_ms=1.0)


def test_what_the_servers_took_of_a_processor():
    outcome = Outcome([Answer(0.0, [1.0, 1.5, 2.0])], took_s=2.0)
    assert summarise(outcome, processor_s=0.006).processor_ms == pytest.approx(2)
    assert summarise(outcome).processor_ms is None
    assert summarise(Outcome([Answer(0.0)]), processor_s=0.006).processor_ms is None
    known = Contestant("other", (), pids=(os.getpid(),))
    before_s = known.processor_s()
    until_s = time.process_time() + 0.1
    while time.process_time() < until_s:
        pass
    assert 0.05 < known.processor_s() - before_s < 1
    assert Contestant("elsewhere", ()).processor_s() is None
    assert Contestant("dead", (), pids=(1 << 30,)).processor_s() is None


def test_medians_and_tables():
    found = medians([figure(3.0), figure(30.0), figure(6.0)])
    assert found.tokens_per_s == pytest.approx(6)
    assert found.gap_p50_ms == found.token_ms == 500
    assert "2.00 times the tokens a second" in load_table({"ours": found, "theirs": figure(3.0)})
    mine = MeshFigure(case="1 in all", contestant="ours", load=found, rtt_ms=100.0)
    assert mine.link_ms == pytest.approx(150)
    assert mine.overhead == pytest.approx(0.7)
    theirs = MeshFigure(case="1 in all", contestant="theirs", load=figure(3.0))
    table = mesh_table([mine, theirs, MeshFigure(case="4 on each node", contestant="ours", load=found)])
    assert "1 in all: ours / theirs: 2.00 times the tokens a second" in table
    assert table.count("times the tokens") == 1


def test_each_mesh_takes_part_once_for_each_way_to_draft():
    ours = Contestant("meshmoe", (Server("a", socket_path="a"),), nodes=(cast(LocalNode, object()),))
    theirs = Contestant("other", (Server("other", port=80),))
    assert drafting_ways([ours, theirs], ()) == [ours, theirs]
    off, four, last = drafting_ways([ours, theirs], ["off", "4"])
    assert [off.name, four.name, last.name] == ["meshmoe, drafts off", "meshmoe, drafts 4", "other"]
    assert (off.servers[0].drafts, four.servers[0].drafts, last.servers[0].drafts) == ("off", "4", "")
    assert off.nodes is four.nodes is ours.nodes


def test_prompts_differ_and_have_the_wanted_length():
    prompts = [short_prompt(domain, number) for domain in OPENINGS for number in range(9)]
    assert len(set(prompts)) == len(prompts)
    assert len(long_text(3, 5000)) == 5000
    assert long_text(3, 5000)[:4] != long_text(4, 5000)[:4]

    async def four_characters_a_token(text):
        return len(text) // 4

    assert trio.run(characters_for, 256, four_characters_a_token) == 1024


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", "127.0.0.1:80"])
def test_an_address_that_is_none(url):
    with pytest.raises(ConfigError, match="http://HOST:PORT"):
        parse_server(url)


def test_addresses():
    assert parse_server("http://127.0.0.1:8080").prefix == "/v1"
    assert parse_server("http://box:8080/api/v1/").prefix == "/api/v1"
