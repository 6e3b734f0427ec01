"""``POST /v1/chat/completions``: a chat is answered."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.types import ASGIApp

from meshmoe.api.answer import Answer, ChoiceShape, require_model, require_ready
from meshmoe.api.chat_template import render_chat
from meshmoe.api.decoding import decode_body
from meshmoe.api.prompts import PromptEncoder
from meshmoe.api.request_types import ChatBody
from meshmoe.api.respond import respond
from meshmoe.api.response_types import (
    AssistantMessage,
    ChatChoice,
    ChatLogprobs,
    ChoiceExtension,
    ChunkChoice,
    ContentLogprob,
    Delta,
    TopLogprob,
)
from meshmoe.api.sampling import sampling_params
from meshmoe.api.service import ModelService
from meshmoe.api.token_text import token_bytes, token_text
from meshmoe.core.errors import RequestError
from meshmoe.engine.request import FinishEvent, GenerationRequest, TokenEvent


class ChatShape:
    """A choice of this endpoint.

    Args:
        index: Its number.
        tokenizer: The model's.
        logprobs: Whether to show log-probabilities.
        token_ids: Whether to report token ids.
    """

    def __init__(self, index: int, tokenizer: Any, *, logprobs: bool, token_ids: bool) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._token_ids = token_ids

    def opening(self) -> ChunkChoice:
        """The role comes first, alone."""
        return ChunkChoice(self._index, Delta(role="assistant", content=""))

    def piece(self, event: TokenEvent) -> ChunkChoice | None:
        """A token; one without text of its own yet is worth a chunk only to those who asked for more than text."""
        if not event.text and not self._logprobs and not self._token_ids:
            return None
        return ChunkChoice(
            self._index, Delta(content=event.text), self._token_logprobs([event]), None, self._extension([event])
        )

    def ending(self, event: FinishEvent) -> ChunkChoice:
        """The rest of the text and the reason of the end."""
        delta = Delta(content=event.text) if event.text else Delta()
        return ChunkChoice(self._index, delta, None, event.reason, self._extension([]))

    def whole(self, tokens: list[TokenEvent], finish: FinishEvent) -> ChatChoice:
        """The whole message."""
        text = "".join(event.text for event in tokens) + finish.text
        return ChatChoice(
            self._index,
            AssistantMessage(text),
            self._token_logprobs(tokens),
            finish.reason,
            self._extension(tokens),
        )

    def _extension(self, tokens: list[TokenEvent]) -> ChoiceExtension | UnsetType:
        return ChoiceExtension([event.token_id for event in tokens]) if self._token_ids else UNSET

    def _token_logprobs(self, tokens: list[TokenEvent]) -> ChatLogprobs | None:
        if not self._logprobs:
            return None
        content = []
        for event in tokens:
            text = token_text(self._tokenizer, event.token_id)
            top = [TopLogprob(t.text, t.logprob, token_bytes(t.text)) for t in event.top_logprobs]
            content.append(ContentLogprob(text, event.logprob or 0.0, token_bytes(text), top))
        return ChatLogprobs(content)


async def chat_completions(request: Request) -> ASGIApp:
    """Answer ``POST /v1/chat/completions``."""
    service: ModelService = request.app.state.service
    body = decode_body(await request.body(), ChatBody)
    require_model(service, body)
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    require_ready(service)
    return await respond(request, await _answer(service, request.app.state.encoder, body), stream=bool(body.stream))


async def _answer(service: ModelService, encoder: PromptEncoder, body: ChatBody) -> Answer:
    tokenizer = service.tokenizer
    text, template_stops = render_chat(tokenizer, body.messages)
    # A template writes the special tokens out; the transcript for base models is plain text and wants them added.
    ids = await encoder.encode(text, special_tokens=bool(template_stops), param="messages")
    token_ids = body.meshmoe is not None and body.meshmoe.token_ids
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    generations: list[GenerationRequest] = []
    shapes: list[ChoiceShape] = []
    for copy in range(body.n or 1):
        params = sampling_params(
            body,
            copy=copy,
            max_tokens=max_tokens,
            room_tokens=service.context_tokens - len(ids),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            template_stops=template_stops,
        )
        generations.append(GenerationRequest(prompt_ids=ids, sampling=params))
        shapes.append(ChatShape(copy, tokenizer, logprobs=bool(body.logprobs), token_ids=token_ids))
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return Answer(service, kind, "chatcmpl", generations, shapes, len(ids), include_usage)
