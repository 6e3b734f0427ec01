"""From what a client sent to token ids.

Short texts are tokenized in place, which takes about a millisecond; a long one goes to a thread, because the trio loop
also answers the peers of this node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from meshmoe.api.service import ModelService
from meshmoe.core.errors import RequestError

TEXT_INLINE_CHARS_MAX = 4_000


class PromptEncoder:
    """Turns prompts into token ids for one service, one long text at a time."""

    def __init__(self, service: ModelService) -> None:
        self._service = service
        # transformers' tokenizers change their truncation state while encoding, so two threads must not share one.
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._token_chars_max: int | None = None

    async def encode(self, text: str, *, special_tokens: bool, param: str) -> tuple[int, ...]:
        """Token ids of ``text``.

        Args:
            text: What to encode.
            special_tokens: Whether the tokenizer adds its own (a beginning-of-text token, say). Chat templates write
                them out, plain prompts do not.
            param: The field of the request that an error is to name.

        Raises:
            RequestError: The text does not fit into the context.
        """
        tokenizer = self._service.tokenizer

        def encode() -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=special_tokens))

        def encode_long() -> tuple[int, ...]:
            self._require_plausible(tokenizer, len(text), param)
            return encode()

        if len(text) > TEXT_INLINE_CHARS_MAX:
            # Abandoned on cancellation, or else a stopping node would wait for it; the limiter does.
            ids = await trio.to_thread.run_sync(encode_long, abandon_on_cancel=True, limiter=self._one_at_a_time)
        else:
            async with self._one_at_a_time:
                ids = encode()
        ids = self._not_empty(ids)
        self._require_fit(ids, param)
        return ids

    def _require_plausible(self, tokenizer: Any, length_chars: int, param: str) -> None:
        """Refuse a text that cannot fit whatever its tokens are, before half a minute is spent on counting them."""
        if self._token_chars_max is None:
            self._token_chars_max = max(map(len, tokenizer.get_vocab()))
        context = self._service.context_tokens
        if length_chars > context * self._token_chars_max:
            raise RequestError(
                f"this model's maximum context length is {context} tokens, each of at most {self._token_chars_max} "
                f"characters; the {param} has {length_chars} characters",
                param=param,
                code="context_length_exceeded",
            )

    def check_ids(self, token_ids: list[int]) -> tuple[int, ...]:
        """Token ids that a client sent as ``prompt``, as they are.

        Raises:
            RequestError: One of them is no token of this model, or they do not fit into the context.
        """
        self._require_fit(token_ids, "prompt")
        vocabulary = len(self._service.tokenizer)
        for token_id in (min(token_ids), max(token_ids)) if token_ids else ():
            if not 0 <= token_id < vocabulary:
                raise RequestError(
                    f"prompt: token id {token_id} is outside of the vocabulary of {vocabulary} tokens",
                    param="prompt",
                    code="invalid_value",
                )
        return self._not_empty(tuple(token_ids))

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """The text of ``token_ids``."""
        return str(self._service.tokenizer.decode(token_ids))

    def _require_fit(self, token_ids: Sequence[int], param: str) -> None:
        """Refuse a prompt that leaves no room for one more token.

        Raises:
            RequestError: It is too long; the message says by how much.
        """
        context, length = self._service.context_tokens, len(token_ids)
        if length >= context:
            raise RequestError(
                f"this model's maximum context length is {context} tokens, of which at least 1 is for the answer; "
                f"the {param} has {length} tokens: shorten it by at least {length - context + 1}",
                param=param,
                code="context_length_exceeded",
            )

    def _not_empty(self, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """An empty prompt means "from the beginning", which is what the beginning-of-text token stands for."""
        if token_ids:
            return token_ids
        tokenizer: Any = self._service.tokenizer
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise RequestError("the prompt is empty, and this model has no token to begin with", param="prompt")
        return (int(start),)
