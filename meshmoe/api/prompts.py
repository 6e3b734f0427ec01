"""From what a client sent to token ids.

Tokenizing is fast (about a megabyte a second and more), so short texts are done in place; a long one goes to a thread,
because the trio loop also answers the peers of this node.
"""

from __future__ import annotations

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

    async def encode(self, text: str, *, special_tokens: bool) -> tuple[int, ...]:
        """Token ids of ``text``.

        Args:
            text: What to encode.
            special_tokens: Whether the tokenizer adds its own (a beginning-of-text token, say). Chat templates write
                them out, plain prompts do not.
        """
        tokenizer = self._service.tokenizer

        def encode() -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=special_tokens))

        async with self._one_at_a_time:
            if len(text) <= TEXT_INLINE_CHARS_MAX:
                return self._not_empty(encode())
            return self._not_empty(await trio.to_thread.run_sync(encode))

    def check_ids(self, token_ids: list[int]) -> tuple[int, ...]:
        """Token ids that a client sent, as they are.

        Raises:
            RequestError: One of them is no token of this model.
        """
        vocabulary = len(self._service.tokenizer)
        for token_id in token_ids:
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

    def require_fit(self, token_ids: tuple[int, ...], param: str) -> None:
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
