"""What clients get: OpenAI's response bodies and stream chunks, as structs that msgspec encodes.

UNSET fields do not appear in the JSON; None appears as null. OpenAI's shapes need both.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from meshmoe.api.report import GenerationReport


class Usage(msgspec.Struct):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChoiceExtension(msgspec.Struct):
    """The ``meshmoe`` object of a choice, present when the request asked for token ids."""

    token_ids: list[int]


class CompletionLogprobs(msgspec.Struct):
    """Log-probabilities in the shape of the older endpoint: parallel lists."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    """One text of ``/v1/completions``, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    meshmoe: ChoiceExtension | UnsetType = UNSET


class TopLogprob(msgspec.Struct):
    """A token that might have stood there."""

    token: str
    logprob: float
    bytes: list[int] | None


class ContentLogprob(msgspec.Struct):
    """A token that stands there, with those that might have."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """Log-probabilities in the shape of the chat endpoint."""

    content: list[ContentLogprob]
    refusal: None = None


class AssistantMessage(msgspec.Struct):
    """The whole answer of a chat."""

    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct):
    """One answer of a chat."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    meshmoe: ChoiceExtension | UnsetType = UNSET


class Delta(msgspec.Struct):
    """What a chunk adds to an answer."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    """A piece of an answer of a chat."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    meshmoe: ChoiceExtension | UnsetType = UNSET


class Envelope(msgspec.Struct):
    """What every response and chunk has around its choices."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice] | list[ChatChoice] | list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    meshmoe: GenerationReport | UnsetType = UNSET
