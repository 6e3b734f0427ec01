"""What clients may ask: OpenAI's request bodies with this project's extensions, as typed structs.

A field that is not listed here is ignored, as OpenAI's clients expect of compatible servers. A field that is known
but not supported is listed under ``REFUSED`` with the values that ask for nothing; any other value is refused by name,
since silently ignoring it would answer another question than the one that was asked.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from meshmoe.engine.request import LOGIT_BIAS_MAX, STOP_STRINGS_MAX

CHOICES_MAX = 128
TOP_LOGPROBS_MAX = 20
STOP_CHARS_MAX = 1000

Count = Annotated[int, Meta(ge=1, lt=1 << 31)]
StopString = Annotated[str, Meta(min_length=1, max_length=STOP_CHARS_MAX)]

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
TokenIdText = Annotated[str, Meta(pattern="^[0-9]{1,9}$")]


class StreamOptions(msgspec.Struct, frozen=True):
    """OpenAI's ``stream_options``."""

    include_usage: bool | None = None


class Extensions(msgspec.Struct, frozen=True):
    """The ``meshmoe`` object of a request.

    Attributes:
        token_ids: Report the ids of the written tokens beside their text.
        drafts: As ``meshmoe join --drafts``: ``auto``, ``off``, ``lookup``, a number. Absent, what the node was told.
    """

    token_ids: bool = False
    drafts: Annotated[str, Meta(max_length=8)] | Annotated[int, Meta(ge=0, le=999)] | None = None


class TextFormat(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """``response_format``: any text."""


class JsonObjectFormat(msgspec.Struct, frozen=True, tag_field="type", tag="json_object"):
    """``response_format``: any JSON object."""


class JsonSchema(msgspec.Struct, frozen=True):
    """A schema and its name.

    Attributes:
        name: Told by clients; of no use here.
        schema: The schema itself, a JSON object; absent, any object will do.
        strict: Whether the schema is to be held to; here it always is.
    """

    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, frozen=True, tag_field="type", tag="json_schema"):
    """``response_format``: a document that a JSON schema allows."""

    json_schema: JsonSchema


class GenerationFields(msgspec.Struct, kw_only=True):
    """What both endpoints understand; None means absent, or null, which is the same to OpenAI."""

    model: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenIdText, Bias], Meta(max_length=LOGIT_BIAS_MAX)] | None = None
    n: Annotated[int, Meta(ge=1, le=CHOICES_MAX)] | None = None
    max_tokens: Count | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=STOP_STRINGS_MAX)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # Extensions that other servers of open models know under the same names.
    top_k: Annotated[int, Meta(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=10)] | None = None
    ignore_eos: bool | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    meshmoe: Extensions | None = None

    REFUSED: ClassVar[dict[str, tuple[Any, ...]]] = {}


class CompletionBody(GenerationFields, kw_only=True):
    """Body of ``POST /v1/completions``."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None

    suffix: Any = None
    best_of: Any = None

    REFUSED: ClassVar[dict[str, tuple[Any, ...]]] = {**GenerationFields.REFUSED, "suffix": ("",), "best_of": (1,)}


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message's content; only text can be read."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, frozen=True):
    """One message of a chat."""

    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: Any = None


class ChatBody(GenerationFields, kw_only=True):
    """Body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None

    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None

    REFUSED: ClassVar[dict[str, tuple[Any, ...]]] = {
        **GenerationFields.REFUSED,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
    }
