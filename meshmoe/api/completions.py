"""``POST /v1/completions``: a text is continued."""

from __future__ import annotations

from typing import Any, cast

import trio
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.types import ASGIApp

from meshmoe.api.answer import Answer, ChoiceShape, require_model, require_ready
from meshmoe.api.decoding import decode_body
from meshmoe.api.prompts import PromptEncoder
from meshmoe.api.request_types import CHOICES_MAX, CompletionBody
from meshmoe.api.respond import respond
from meshmoe.api.response_types import ChoiceExtension, CompletionChoice, CompletionLogprobs
from meshmoe.api.sampling import sampling_params
from meshmoe.api.service import ModelService
from meshmoe.api.token_text import token_text
from meshmoe.core.errors import RequestError
from meshmoe.engine.request import FinishEvent, GenerationRequest, TokenEvent

MAX_TOKENS_DEFAULT = 16
"""OpenAI's default for this endpoint."""


class CompletionShape:
    """A choice of this endpoint.

    Args:
        index: Its number.
        tokenizer: The model's.
        echo: Text that is to stand before the completion.
        logprobs: How many likeliest tokens to show beside each token; None shows nothing.
        token_ids: Whether to report token ids.
    """

    def __init__(self, index: int, tokenizer: Any, *, echo: str, logprobs: int | None, token_ids: bool) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._echo = echo
        self._logprobs = logprobs
        self._token_ids = token_ids
        self._offset_chars = len(echo)

    def opening(self) -> CompletionChoice | None:
        """The echo, if any."""
        return self._choice(self._echo, []) if self._echo else None

    def piece(self, event: TokenEvent) -> CompletionChoice | None:
        """A token; one without text of its own yet is worth a chunk only to those who asked for more than text."""
        if not event.text and self._logprobs is None and not self._token_ids:
            return None
        return self._choice(event.text, [event])

    def ending(self, event: FinishEvent) -> CompletionChoice:
        """The rest of the text and the reason of the end."""
        return self._choice(event.text, [], event.reason)

    def whole(self, tokens: list[TokenEvent], finish: FinishEvent) -> CompletionChoice:
        """The whole text."""
        text = "".join(event.text for event in tokens)
        return self._choice(self._echo + text + finish.text, tokens, finish.reason)

    def _choice(self, text: str, tokens: list[TokenEvent], reason: str | None = None) -> CompletionChoice:
        extension: ChoiceExtension | UnsetType = UNSET
        if self._token_ids:
            extension = ChoiceExtension([event.token_id for event in tokens])
        logprobs = self._token_logprobs(tokens) if self._logprobs is not None and tokens else None
        return CompletionChoice(self._index, text, logprobs, reason, extension)

    def _token_logprobs(self, tokens: list[TokenEvent]) -> CompletionLogprobs:
        shown = CompletionLogprobs([], [], [] if self._logprobs else None, [])
        for event in tokens:
            text = token_text(self._tokenizer, event.token_id)
            shown.tokens.append(text)
            shown.token_logprobs.append(event.logprob)
            shown.text_offset.append(self._offset_chars)
            self._offset_chars += len(text)
            if shown.top_logprobs is not None:
                # Several tokens can have the same text (parts of characters); the likeliest keeps it.
                likeliest: dict[str, float] = {}
                for top in event.top_logprobs:
                    likeliest.setdefault(top.text, top.logprob)
                if event.logprob is not None:
                    likeliest.setdefault(text, event.logprob)
                shown.top_logprobs.append(likeliest)
        return shown


async def completions(request: Request) -> ASGIApp:
    """Answer ``POST /v1/completions``."""
    service: ModelService = request.app.state.service
    body = decode_body(await request.body(), CompletionBody)
    require_model(service, body)
    if body.echo and body.logprobs is not None:
        raise RequestError(
            "logprobs cannot be had together with echo: log-probabilities of the prompt are not computed",
            param="logprobs",
            code="unsupported_parameter",
        )
    require_ready(service)
    return await respond(request, await _answer(service, request.app.state.encoder, body), stream=bool(body.stream))


async def _answer(service: ModelService, encoder: PromptEncoder, body: CompletionBody) -> Answer:
    prompts, copies = _prompts(body.prompt), body.n or 1
    if len(prompts) * copies > CHOICES_MAX:
        raise RequestError(
            f"{len(prompts)} prompts with {copies} choices each are more than {CHOICES_MAX} texts at once",
            param="prompt",
            code="invalid_value",
        )
    token_ids = body.meshmoe is not None and body.meshmoe.token_ids
    generations: list[GenerationRequest] = []
    shapes: list[ChoiceShape] = []
    prompt_tokens = 0
    for prompt in prompts:
        if isinstance(prompt, str):
            ids, text = await encoder.encode(prompt, special_tokens=True, param="prompt"), prompt
        else:
            ids = encoder.check_ids(prompt)
            text = encoder.decode(ids) if body.echo else ""
            await trio.lowlevel.checkpoint()
        prompt_tokens += len(ids)
        for copy in range(copies):
            params = sampling_params(
                body,
                copy=copy,
                max_tokens=MAX_TOKENS_DEFAULT if body.max_tokens is None else body.max_tokens,
                room_tokens=service.context_tokens - len(ids),
                logprobs=body.logprobs,
            )
            generations.append(GenerationRequest(prompt_ids=ids, sampling=params))
            shapes.append(
                CompletionShape(
                    len(shapes),
                    service.tokenizer,
                    echo=text if body.echo else "",
                    logprobs=body.logprobs,
                    token_ids=token_ids,
                )
            )
    include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return Answer(service, "text_completion", "cmpl", generations, shapes, prompt_tokens, include_usage)


def _prompts(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """Tell the four kinds of prompt apart: a text, texts, token ids, lists of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    kinds = set(map(type, prompt))
    if kinds == {int}:
        return [cast("list[int]", prompt)]
    if kinds in ({str}, {list}):
        return cast("list[str | list[int]]", prompt)
    raise RequestError(
        "prompt: expected a string, a list of strings, a list of token ids, or a list of such lists",
        param="prompt",
        code="invalid_type",
    )
