"""The official client, unchanged, over the Unix socket. It is built on httpx2, which is httpx under another name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx2
import openai
import pytest

from meshmoe.core.errors import CapacityError, ExpertUnavailableError, OverloadedError
from tests.api.scripted import TEXT, tokenizer
from tests.api.serving import Served


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    transport = httpx2.HTTPTransport(uds=str(served.path))
    with openai.OpenAI(
        base_url="http://localhost/v1",
        api_key="none needed",
        max_retries=0,
        http_client=httpx2.Client(transport=transport),
    ) as made:
        yield made


def text_of(tokens: int) -> str:
    return str(tokenizer().decode(tokenizer().encode(TEXT)[:tokens]))


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert model.id == "edge-12m"
    assert client.models.retrieve("edge-12m") == model


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="edge-12m",
        messages=[{"role": "user", "content": "hello"}],
        max_completion_tokens=6,
        logprobs=True,
        top_logprobs=1,
        extra_body={"top_k": 5, "meshmoe": {"token_ids": True}},
    )
    assert answer.choices[0].message.content == text_of(6)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.content or ()) == 6
    assert answer.model_extra is not None
    assert answer.model_extra["meshmoe"]["rounds_per_token"] == 2.0
    assert answer.choices[0].model_extra == {"meshmoe": {"token_ids": tokenizer().encode(TEXT)[:6]}}


def test_chat_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="edge-12m",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text_of(6)
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6


def test_the_helper_for_streams(client: openai.OpenAI, served: Served) -> None:
    served.service.finish_reason = "stop"
    messages = [{"role": "user", "content": "hello"}]
    with client.chat.completions.stream(model="edge-12m", messages=messages, max_tokens=6) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == text_of(6)


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="edge-12m", prompt=["a", "b"], max_tokens=3, logprobs=1)
    assert [choice.text for choice in answer.choices] == [text_of(3)] * 2
    pieces = client.completions.create(model="edge-12m", prompt="a", max_tokens=3, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == text_of(3)


def test_errors_become_the_clients_exceptions(client: openai.OpenAI, served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        client.completions.create(model="gpt-5", prompt="a")
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="edge-12m", prompt=[5] * 5000)
    assert bad.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            model="edge-12m",
            messages=[{"role": "user", "content": "x"}],
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    assert tools.value.param == "tools"
    with pytest.raises(openai.NotFoundError, match="embeddings"):
        client.embeddings.create(model="edge-12m", input="a")
    served.service.refuse = OverloadedError("too many")
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="edge-12m", prompt="a")
    served.service.not_ready = CapacityError("12 MiB are missing")
    with pytest.raises(openai.InternalServerError, match="12 MiB"):
        client.completions.create(model="edge-12m", prompt="a")


def test_an_error_in_a_stream_is_raised(client: openai.OpenAI, served: Served) -> None:
    served.service.fail_after = (3, ExpertUnavailableError("expert 3/17 is gone"))
    stream = client.completions.create(model="edge-12m", prompt="a", max_tokens=9, stream=True)
    with pytest.raises(openai.APIError, match="expert 3/17 is gone"):
        list(stream)


def test_closing_a_stream_cancels_it(client: openai.OpenAI, served: Served) -> None:
    served.service.delay_s = 0.01
    with client.completions.create(model="edge-12m", prompt="a", max_tokens=400, stream=True) as stream:
        next(iter(stream))
        assert served.service.active == 1
    assert served.wait_until(lambda: served.service.active == 0) < 0.5


def test_ten_at_once(served: Served) -> None:
    served.service.delay_s = 0.005

    async def one(client: openai.AsyncOpenAI, count: int) -> str:
        text = ""
        stream = await client.chat.completions.create(
            model="edge-12m", messages=[{"role": "user", "content": "x"}], max_tokens=count, stream=True
        )
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
        return text

    async def all_of_them() -> list[str]:
        transport = httpx2.AsyncHTTPTransport(uds=str(served.path))
        async with openai.AsyncOpenAI(
            base_url="http://localhost/v1", api_key="x", http_client=httpx2.AsyncClient(transport=transport)
        ) as client:
            return await asyncio.gather(*(one(client, count) for count in range(10, 20)))

    assert asyncio.run(all_of_them()) == [text_of(count) for count in range(10, 20)]
    assert served.service.active_most == 10
