from __future__ import annotations

import json

import pytest

from tests.api.scripted import TEXT, tokenizer
from tests.api.serving import Served, events


def test_continues_a_text(served: Served) -> None:
    with served.client() as client:
        answer = client.post("/v1/completions", json={"model": "edge-12m", "prompt": "hello", "max_tokens": 5}).json()
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "edge-12m"
    (choice,) = answer["choices"]
    ids = tokenizer().encode(TEXT)[:5]
    assert choice == {"index": 0, "text": tokenizer().decode(ids), "logprobs": None, "finish_reason": "length"}
    prompt = len(tokenizer().encode("hello"))
    assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": 5, "total_tokens": prompt + 5}
    assert answer["meshmoe"]["rounds_per_token"] == 2.0
    assert answer["meshmoe"]["hit_ratio"] == 0.75
    assert answer["meshmoe"]["sent_bytes"] == 1000
    assert answer["meshmoe"]["tokens_per_s"] == 8.0


def test_defaults_are_openais(served: Served) -> None:
    with served.client() as client:
        client.post("/v1/completions", json={"prompt": "hello"})
    sampling = served.service.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (16, 1.0, 1.0, 0)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed, sampling.stop) == (0.0, 1.0, None, ())
    assert (sampling.ignore_eos, sampling.logprobs) == (False, None)


def test_all_sampling_fields_arrive(served: Served) -> None:
    body = {
        "prompt": "x",
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "frequency_penalty": 0.25,
        "presence_penalty": -0.5,
        "logit_bias": {"7": -100, "5": 1.5},
        "seed": -3,
        "stop": ["a", "b"],
        "ignore_eos": True,
        "logprobs": 2,
        "user": "somebody",
        "no_such_field": {"a": [1]},
    }
    with served.client() as client:
        assert client.post("/v1/completions", json=body).status_code == 200
    sampling = served.service.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (3, 0.5, 0.9, 7)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.stop) == (0.1, 1.5, ("a", "b"))
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.25, -0.5)
    assert sampling.logit_bias == ((5, 1.5), (7, -100.0))
    assert (sampling.ignore_eos, sampling.logprobs) == (True, 2)
    assert sampling.seed == (1 << 63) - 3
    assert sampling.drafts is None


@pytest.mark.parametrize(
    ("said", "kind", "length"), [("off", "off", 0), (4, "fixed", 4), ("4", "fixed", 4), (0, "off", 0)]
)
def test_a_request_may_say_how_to_draft(served: Served, said: str | int, kind: str, length: int) -> None:
    with served.client() as client:
        client.post("/v1/completions", json={"prompt": "x", "meshmoe": {"drafts": said}})
    drafts = served.service.requests[0].sampling.drafts
    assert drafts is not None and (drafts.kind, drafts.length) == (kind, length)


@pytest.mark.parametrize("said", ["many", 99, -1, [], 1.5, "auto" * 9])
def test_drafts_of_no_known_kind_are_refused_by_name(served: Served, said: object) -> None:
    with served.client() as client:
        answer = client.post("/v1/completions", json={"prompt": "x", "meshmoe": {"drafts": said}})
    assert answer.status_code == 400 and "meshmoe" in answer.json()["error"]["message"]
    assert not served.service.requests


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("one", 1),
        (["one", "two"], 2),
        ([5, 6, 7], 1),
        ([[5, 6], [7]], 2),
        ("", 1),
    ],
)
def test_kinds_of_prompt(served: Served, prompt: object, texts: int) -> None:
    with served.client() as client:
        answer = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 2}).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(texts))
    if prompt == [[5, 6], [7]]:
        assert sorted(r.prompt_ids for r in served.service.requests) == [(5, 6), (7,)]
        assert answer["usage"]["prompt_tokens"] == 3
    if prompt == "":
        assert served.service.requests[0].prompt_ids == (tokenizer().bos_token_id,)


def test_several_choices_draw_from_seeds_of_their_own(served: Served) -> None:
    with served.client() as client:
        answer = client.post("/v1/completions", json={"prompt": ["a", "b"], "n": 3, "max_tokens": 2, "seed": 10}).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert sorted(r.sampling.seed or 0 for r in served.service.requests) == [10, 10, 11, 11, 12, 12]
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["usage"]["completion_tokens"] == 12


def test_one_request_does_not_fill_the_engine(served: Served) -> None:
    served.service.delay_s = 0.01
    with served.client() as client:
        assert client.post("/v1/completions", json={"prompt": "a", "n": 30, "max_tokens": 2}).status_code == 200
    assert served.service.started == 30
    assert served.service.active_most == 8


def test_echo(served: Served) -> None:
    with served.client() as client:
        whole = client.post("/v1/completions", json={"prompt": "hello ", "echo": True, "max_tokens": 1}).json()
        ids = client.post("/v1/completions", json={"prompt": [300, 301], "echo": True, "max_tokens": 1}).json()
        body = {"prompt": "hello ", "echo": True, "max_tokens": 1, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            pieces = [json.loads(data)["choices"][0]["text"] for data in events(response)[:-1]]
    assert whole["choices"][0]["text"].startswith("hello ")
    assert ids["choices"][0]["text"].startswith(tokenizer().decode([300, 301]))
    assert pieces[0] == "hello "
    assert "".join(pieces) == whole["choices"][0]["text"]


def test_logprobs(served: Served) -> None:
    with served.client() as client:
        answer = client.post("/v1/completions", json={"prompt": "x", "logprobs": 2, "max_tokens": 3}).json()
    logprobs = answer["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == answer["choices"][0]["text"]
    assert logprobs["token_logprobs"] == [-0.5] * 3
    assert logprobs["text_offset"][0] == 0
    assert logprobs["text_offset"][1] == len(logprobs["tokens"][0])
    assert len(logprobs["top_logprobs"][0]) == 2


def test_stream(served: Served) -> None:
    body = {"prompt": "x", "max_tokens": 4, "stream": True, "meshmoe": {"token_ids": True}}
    with served.client() as client, client.stream("POST", "/v1/completions", json=body) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = events(response)
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "text_completion" for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks)
    ids = [i for chunk in chunks for i in chunk["choices"][0]["meshmoe"]["token_ids"]]
    assert ids == tokenizer().encode(TEXT)[:4]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == tokenizer().decode(ids)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["length"]
    assert ["meshmoe" in chunk for chunk in chunks] == [False] * 4 + [True]


def test_stream_of_several_choices(served: Served) -> None:
    body = {"prompt": ["x", "y"], "n": 2, "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}}
    with served.client() as client, client.stream("POST", "/v1/completions", json=body) as response:
        chunks = [json.loads(line) for line in events(response)[:-1]]
    texts = dict.fromkeys(range(4), "")
    for chunk in chunks[:-1]:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        assert chunk["usage"] is None
    assert set(texts.values()) == {tokenizer().decode(tokenizer().encode(TEXT)[:4])}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 16
    assert chunks[-1]["meshmoe"]["completion_tokens"] == 16


def test_line_ends_of_unicode_do_not_cut_events(served: Served) -> None:
    served.service.text = "a\u2028b\u2029c\x85d\r\ne"
    body = {"prompt": "x", "max_tokens": len(tokenizer().encode(served.service.text)), "stream": True, "echo": True}
    body["prompt"] = served.service.text
    with served.client() as client, client.stream("POST", "/v1/completions", json=body) as response:
        lines = events(response)
    assert json.loads(lines[0])["choices"][0]["text"] == served.service.text
    assert lines[-1] == "[DONE]"


def test_max_tokens_are_cut_to_the_context(served: Served) -> None:
    with served.client() as client:
        answer = client.post("/v1/completions", json={"prompt": [5] * 500, "max_tokens": 10_000}).json()
    assert answer["usage"]["completion_tokens"] == 12
