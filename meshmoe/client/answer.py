"""What is asked and what comes back, the same for both clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import msgspec

from meshmoe.api.error_reading import NoNodeError, raise_if_error
from meshmoe.api.report import GenerationReport

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


class Message(TypedDict):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Options(TypedDict, total=False):
    """How a text is written; docs/api.md has the meaning and the default of each.

    ``schema`` is a JSON schema, or a msgspec Struct, dataclass or TypedDict from which one is made: the text is then
    a document that it allows.
    """

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: dict[str, float]
    seed: int
    stop: str | list[str]
    ignore_eos: bool
    schema: dict[str, Any] | type


@dataclass
class Answer:
    """A text, complete or in the making.

    Attributes:
        text: What was written.
        token_ids: Its tokens.
        finish_reason: ``stop`` or ``length``; None until it has ended.
        report: What the mesh did for it; None until it has ended.
        model: Who wrote it.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    report: GenerationReport | None = None
    model: str = ""

    def add(self, event: dict[str, Any]) -> str:
        """Take in a chunk of either endpoint; returns the text that it brings."""
        self.model = event["model"]
        if "meshmoe" in event:
            self.report = msgspec.convert(event["meshmoe"], GenerationReport)
        brought = ""
        for choice in event["choices"]:
            brought += choice["text"] if "text" in choice else choice["delta"].get("content", "")
            self.token_ids += choice.get("meshmoe", {}).get("token_ids", ())
            self.finish_reason = choice["finish_reason"]
        self.text += brought
        return brought

    def require_whole(self) -> None:
        """Check that the stream came to its end.

        Raises:
            NoNodeError: It broke off.
        """
        if self.report is None:
            raise NoNodeError("the node broke its answer off")


def body_of(path: str, asked: str | Sequence[Message], options: Options) -> dict[str, Any]:
    """The request's body; every request is streamed, so that going away is noticed."""
    body: dict[str, Any] = {name: value for name, value in options.items() if name != "schema"}
    body |= {"stream": True, "meshmoe": {"token_ids": True}}
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
    else:
        body["prompt"] = asked
    schema = options.get("schema")
    if schema is not None:
        written = schema if isinstance(schema, dict) else msgspec.json.schema(schema)
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": written}}
    return body


def event_of(line: str) -> dict[str, Any] | None:
    """The chunk in a line of the stream; None for other lines.

    Raises:
        MeshmoeError: The line tells of an error.
    """
    if not line.startswith("data: ") or line == "data: [DONE]":
        return None
    event: dict[str, Any] = msgspec.json.decode(line[6:])
    raise_if_error(event)
    return event
