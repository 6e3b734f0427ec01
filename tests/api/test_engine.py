"""The API before the real engine with the bundled model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import httpx
import httpx2
import msgspec
import openai
import pytest
import trio

from meshmoe.engine.request import FinishEvent, GenerationRequest, SamplingParams, TokenEvent
from tests.api.engine_service import EngineService, engine_service
from tests.api.serving import Served, events

PROMPTS = (
    "The mesh is",
    "def main(",
    "#include <stdio.h>\nint ",
    "12 + 30 =",
    "import os\n",
    "A network socket ",
    "static void ",
    "class Node:",
    "for i in range(",
    "The kernel",
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(None, tmp_path_factory.mktemp("engine") / "m.sock", opened=engine_service) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    transport = httpx2.HTTPTransport(uds=str(served.path))
    http_client = httpx2.Client(transport=transport, timeout=60)
    with openai.OpenAI(base_url="http://localhost/v1", api_key="x", max_retries=0, http_client=http_client) as made:
        yield made


def direct(served: Served, prompt: str, sampling: SamplingParams) -> tuple[str, list[int], str]:
    """What the engine itself answers."""

    async def generate() -> tuple[str, list[int], str]:
        service: EngineService = served.service
        request = GenerationRequest(prompt_ids=tuple(service.tokenizer.encode(prompt)), sampling=sampling)
        text, ids, reason = "", [], ""
        async with service.generate(request) as stream:
            async for event in stream:
                text += event.text
                if isinstance(event, TokenEvent):
                    ids.append(event.token_id)
                else:
                    assert isinstance(event, FinishEvent)
                    reason = event.reason
        return text, ids, reason

    return trio.from_thread.run(generate, trio_token=served._token)


@pytest.mark.parametrize(
    "sampling", [SamplingParams(max_tokens=12), SamplingParams(max_tokens=12, temperature=0.8, seed=7)]
)
def test_the_engines_own_text(served: Served, client: openai.OpenAI, sampling: SamplingParams) -> None:
    text, ids, reason = direct(served, PROMPTS[0], sampling)
    asked: dict[str, Any] = {
        "model": "edge-12m",
        "prompt": PROMPTS[0],
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "extra_body": {"meshmoe": {"token_ids": True}},
    }
    whole = client.completions.create(**asked)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (text, reason)
    assert whole.choices[0].model_extra == {"meshmoe": {"token_ids": ids}}
    chunks = list(client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    assert [i for c in chunks for i in (c.choices[0].model_extra or {})["meshmoe"]["token_ids"]] == ids
    report = (chunks[-1].model_extra or {})["meshmoe"]
    assert (report["hit_ratio"], report["rounds_per_token"], report["sent_bytes"]) == (1.0, 0.0, 0)
    assert report["completion_tokens"] == len(ids)
    assert report["tokens_per_s"] > 0


def test_a_stop_string_ends_the_text(client: openai.OpenAI) -> None:
    long = client.completions.create(model="edge-12m", prompt=PROMPTS[0], max_tokens=30, temperature=0).choices[0].text
    stop = long[10:14]
    cut = client.completions.create(model="edge-12m", prompt=PROMPTS[0], max_tokens=30, temperature=0, stop=stop)
    assert cut.choices[0].text == long[: long.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_logprobs_are_the_models(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="edge-12m",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=4,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    assert answer.choices[0].logprobs is not None
    for entry in answer.choices[0].logprobs.content or ():
        assert entry.top_logprobs[0].token == entry.token
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob)
        assert entry.logprob > entry.top_logprobs[1].logprob > entry.top_logprobs[2].logprob


def test_ten_chats_at_once(served: Served) -> None:
    async def one(client: openai.AsyncOpenAI, prompt: str) -> str:
        text = ""
        stream = await client.completions.create(
            model="edge-12m", prompt=prompt, max_tokens=6, temperature=0, stream=True
        )
        async for chunk in stream:
            text += chunk.choices[0].text
        return text

    async def all_of_them() -> list[str]:
        transport = httpx2.AsyncHTTPTransport(uds=str(served.path))
        http_client = httpx2.AsyncClient(transport=transport, timeout=60)
        async with openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="x", http_client=http_client) as client:
            return await asyncio.gather(*(one(client, prompt) for prompt in PROMPTS))

    alone = [direct(served, prompt, SamplingParams(max_tokens=6))[0] for prompt in PROMPTS]
    assert asyncio.run(all_of_them()) == alone


def active(served: Served) -> int:
    return served.call(lambda: served.service.engine.stats().active)


@pytest.mark.parametrize("stream", [False, True])
def test_going_away_frees_the_engine(served: Served, stream: bool) -> None:
    body = {"prompt": "The mesh", "max_tokens": 2000, "ignore_eos": True, "n": 3, "stream": stream}
    with (
        served.client() as client,
        pytest.raises(httpx.ReadTimeout),
        client.stream("POST", "/v1/completions", json=body, timeout=1.5) as response,
    ):
        for count, _ in enumerate(response.iter_lines()):
            if count > 4:
                assert active(served) == 3
                raise httpx.ReadTimeout("enough")
    assert served.wait_until(lambda: active(served) == 0) < 2


def test_errors_of_the_engine(served: Served) -> None:
    with served.client() as client:
        long = client.post("/v1/completions", json={"prompt": [5] * 2048})
        assert long.json()["error"]["code"] == "context_length_exceeded"
        to_the_end = client.post("/v1/completions", json={"prompt": [5] * 2040, "max_tokens": 50, "ignore_eos": True})
        assert to_the_end.json()["usage"]["total_tokens"] == 2048
        zero = client.post("/v1/completions", json={"prompt": "x", "top_p": 0, "temperature": 1, "max_tokens": 2})
        assert zero.status_code == 200, zero.text


def test_too_many_requests_at_once(served: Served) -> None:
    """The engine's queue is bounded; beyond it clients are told to come back."""
    body = {"prompt": "The mesh", "max_tokens": 400, "ignore_eos": True, "stream": True}

    async def all_of_them() -> list[int]:
        transport = httpx.AsyncHTTPTransport(uds=str(served.path), limits=httpx.Limits(max_connections=None))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:

            async def one() -> int:
                async with client.stream("POST", "/v1/completions", json=body) as response:
                    if response.status_code == 429:
                        assert response.headers["retry-after"] == "1"
                        return 429
                    async for _ in response.aiter_lines():  # who goes makes room for another
                        pass
                    return response.status_code

            tasks = [asyncio.create_task(one()) for _ in range(100)]
            done, pending = await asyncio.wait(tasks, timeout=2)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            return [task.result() for task in done]

    assert 429 in asyncio.run(all_of_them())
    assert served.wait_until(lambda: active(served) == 0, timeout_s=10) < 10
    with served.client() as client:
        assert client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}).status_code == 200


def test_events_name_their_choice(served: Served) -> None:
    body = {"prompt": list(PROMPTS[:4]), "max_tokens": 8, "temperature": 0, "stream": True}
    texts = [""] * 4
    with served.client() as client, client.stream("POST", "/v1/completions", json=body) as response:
        for data in events(response)[:-1]:
            (choice,) = json.loads(data)["choices"]
            texts[choice["index"]] += choice["text"]
    assert texts == [direct(served, prompt, SamplingParams(max_tokens=8))[0] for prompt in PROMPTS[:4]]


class Person(msgspec.Struct, forbid_unknown_fields=True):
    """What PERSON allows."""

    name: Annotated[str, msgspec.Meta(max_length=12)]
    age: Annotated[int, msgspec.Meta(ge=0, le=150)]
    tags: Annotated[list[Literal["a", "b"]], msgspec.Meta(max_length=3)] = []


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_schema_is_kept_at_any_temperature(client: openai.OpenAI, ignore_eos: bool) -> None:
    """The model was never taught JSON; that every text is valid is the grammar's doing."""
    answer = client.chat.completions.create(
        model="edge-12m",
        messages=[{"role": "user", "content": "Who are you?"}],
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}},
        max_tokens=200,
        temperature=2,
        seed=3,
        n=6,
        extra_body={"ignore_eos": ignore_eos},
    )
    texts = [choice.message.content or "" for choice in answer.choices]
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    assert len({msgspec.json.decode(text, type=Person).name for text in texts}) > 1


def test_the_schema_touches_no_logprob(client: openai.OpenAI) -> None:
    """Reported are the model's own: the forced brace was no token that it thought likely."""
    answer = client.completions.create(
        model="edge-12m",
        prompt="The mesh",
        max_tokens=1,
        temperature=0,
        logprobs=2,
        extra_body={"response_format": {"type": "json_object"}},
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["{"]
    assert (logprobs.token_logprobs or [0])[0] < -5
    free = client.completions.create(model="edge-12m", prompt="The mesh", max_tokens=1, temperature=0, logprobs=2)
    assert free.choices[0].logprobs is not None
    assert (free.choices[0].logprobs.top_logprobs or [{}])[0].items() <= (logprobs.top_logprobs or [{}])[0].items()


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "objet"}, "objet"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "http://192.0.2.1/schema"}, "does not fetch"),
        ({"enum": ["x" * 70_000]}, "larger than 64 KiB"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_held_to_is_refused(
    served: Served, schema: dict[str, Any], words: str, stream: bool
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": [{"role": "user", "content": "x"}], "response_format": form, "stream": stream}
    with served.client() as client:
        response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "response_format"
    assert words in error["message"]
