from __future__ import annotations

import json
from typing import Any

import pytest

from meshmoe.api.chat_template import render_chat
from meshmoe.api.request_types import ChatMessage, ContentPart
from meshmoe.core.errors import RequestError
from tests.api.scripted import TEXT, tokenizer
from tests.api.serving import Served, events

HELLO = [{"role": "user", "content": "hello"}]


def test_answers(served: Served) -> None:
    with served.client() as client:
        answer = client.post("/v1/chat/completions", json={"messages": HELLO, "max_completion_tokens": 3}).json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    text = tokenizer().decode(tokenizer().encode(TEXT)[:3])
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"content": text, "role": "assistant", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert answer["usage"]["completion_tokens"] == 3


def test_base_models_get_a_transcript(served: Served) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo."}]},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "What is a mesh?"},
    ]
    with served.client() as client:
        client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1, "stop": "END"})
    (request,) = served.service.requests
    expected = "Be brief.\n\nUser: Hello.\nAssistant: Good day.\nUser: What is a mesh?\nAssistant:"
    assert tokenizer().decode(request.prompt_ids) == expected
    assert request.sampling.stop == ("END", "\nUser:")


def test_without_max_tokens_the_context_is_the_limit(served: Served) -> None:
    with served.client() as client:
        answer = client.post("/v1/chat/completions", json={"messages": HELLO}).json()
    assert answer["usage"]["total_tokens"] == served.service.context_tokens


def test_stream(served: Served) -> None:
    body = {"messages": HELLO, "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    with served.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = events(response)
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    pieces = [chunk["choices"][0]["delta"]["content"] for chunk in chunks[1:4]]
    assert "".join(pieces) == tokenizer().decode(tokenizer().encode(TEXT)[:3])
    assert chunks[4]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert chunks[5]["choices"] == []
    assert chunks[5]["usage"]["completion_tokens"] == 3
    assert chunks[5]["meshmoe"]["sent_bytes"] == 1000
    assert all(chunk["usage"] is None for chunk in chunks[:5])


def test_logprobs(served: Served) -> None:
    body = {"messages": HELLO, "max_tokens": 2, "logprobs": True, "top_logprobs": 2}
    with served.client() as client:
        answer = client.post("/v1/chat/completions", json=body).json()
        with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
            chunks = [json.loads(line) for line in events(response)[:-1]]
    content = answer["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == [tokenizer().decode([i]) for i in tokenizer().encode(TEXT)[:2]]
    assert bytes(content[0]["bytes"]).decode() == content[0]["token"]
    assert [top["logprob"] for top in content[0]["top_logprobs"]] == [-0.5, -1.5]
    streamed = [e for c in chunks for e in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == content


class Templated:
    """A tokenizer with a template of its own."""

    chat_template = "yes"

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        assert options == {"tokenize": False, "add_generation_prompt": True}
        if messages[0]["role"] != "user":
            raise ValueError("Conversation roles must alternate")
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


def test_a_models_own_template_is_used() -> None:
    text, stops = render_chat(Templated(), [ChatMessage("user", "hi")])
    assert (text, stops) == ("<user>hi<assistant>", ())


def test_what_a_template_refuses_is_the_clients_error() -> None:
    with pytest.raises(RequestError, match="roles must alternate"):
        render_chat(Templated(), [ChatMessage("assistant", "hi")])


@pytest.mark.parametrize(
    ("message", "param", "words"),
    [
        (ChatMessage("tool", "x"), "messages[0].role", "no tools"),
        (ChatMessage("king", "x"), "messages[0].role", "is not one of"),
        (ChatMessage("user", None), "messages[0].content", "no text"),
        (ChatMessage("assistant", None, [{"id": "1"}]), "messages[0].tool_calls", "no tools"),
        (ChatMessage("user", [ContentPart("image_url")]), "messages[0].content", "image_url"),
        (ChatMessage("user", [ContentPart("text")]), "messages[0].content", "text"),
    ],
)
def test_messages_that_cannot_be_read(message: ChatMessage, param: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        render_chat(tokenizer(), [message])
    assert caught.value.param == param
