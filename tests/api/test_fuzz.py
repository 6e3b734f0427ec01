"""Whatever a body holds, the answer is a success or a client's error that says so in OpenAI's shape."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.serving import Served

ROUNDS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9)
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [
    "model",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "stop",
    "seed",
    "stream",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "repetition_penalty",
    "ignore_eos",
    "meshmoe",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "tools",
    "response_format",
    "echo",
    "suffix",
    "best_of",
    "user",
]
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["edge-12m", "default", "gpt-5"]),
    "max_tokens": st.integers(-1, 5),
    "max_completion_tokens": st.integers(-1, 5),
    "temperature": st.floats(-1, 3),
    "n": st.integers(0, 5),
    "presence_penalty": st.floats(-3, 3),
    "frequency_penalty": st.floats(-3, 3),
    "logit_bias": st.dictionaries(st.integers(-1, 5000).map(str), st.floats(-120, 120), max_size=3),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=20),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "logprobs": st.booleans() | st.integers(0, 5),
    "echo": st.booleans(),
    "meshmoe": st.fixed_dictionaries({"token_ids": st.booleans()}),
}
OPTIONS = st.fixed_dictionaries({}, optional={name: LIKELY.get(name, SCALARS) | ANYTHING for name in FIELDS})
PROMPTS = (
    st.text(max_size=50) | st.lists(st.integers(-2, 5000), max_size=5) | st.lists(st.text(), max_size=4) | ANYTHING
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["system", "user", "assistant", "tool", "developer"]) | ANYTHING,
            "content": st.text(max_size=30)
            | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}))
            | ANYTHING,
            "name": ANYTHING,
        },
    )
    | ANYTHING,
    max_size=4,
)


def check(response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    assert response.status_code in (400, 404), response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tests.api.scripted import ScriptedService

    with Served(ScriptedService(), tmp_path_factory.mktemp("fuzz") / "m.sock") as running, running.client() as client:
        yield client


@ROUNDS
@given(options=OPTIONS, prompt=PROMPTS)
def test_completions(served: httpx.Client, options: dict[str, Any], prompt: Any) -> None:
    check(served.post("/v1/completions", json={"max_tokens": 3, **options, "prompt": prompt}))


@ROUNDS
@given(options=OPTIONS, messages=MESSAGES)
def test_chats(served: httpx.Client, options: dict[str, Any], messages: Any) -> None:
    check(served.post("/v1/chat/completions", json={"max_tokens": 3, **options, "messages": messages}))


@ROUNDS
@given(body=st.binary(max_size=60) | ANYTHING.map(lambda value: repr(value).encode("utf-8", "surrogatepass")))
def test_no_json_at_all(served: httpx.Client, body: bytes) -> None:
    check(served.post("/v1/completions", content=body))


@ROUNDS
@given(path=st.text(max_size=20))
def test_paths(served: httpx.Client, path: str) -> None:
    try:
        url = httpx.URL("http://localhost/v1/models/").join(path) if path else httpx.URL("http://localhost/")
        request = served.build_request("GET", url.copy_with(scheme="http", host="localhost", port=None))
    except (httpx.InvalidURL, ValueError):
        return
    assert served.send(request).status_code in (200, 404, 405)
