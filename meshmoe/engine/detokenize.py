"""Text from tokens, as soon as it is certain and no sooner.

A tokenizer decodes a whole sequence; the text of a token depends on its neighbours: a character may be spread over
several tokens, and some tokenizers drop the space before the first one. So the last tokens (the *window*) are decoded
again with every new one, and what the window said before is cut off. Two things make the tail uncertain:

- An incomplete UTF-8 character decodes to replacement characters, at most three: they are held back.
- The beginning of a stop string: held back until it turns out to be one, or not.

What has been emitted is never taken back, and all pieces together are ``tokenizer.decode(all ids)``, up to the stop.
(One exception: a tokenizer with byte fallback decodes a run of bytes as a whole, so an invalid byte in it spoils
characters that were already certain. The pieces then keep the characters.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import TokenizersBackend

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_HELD_MAX = 3
"""An incomplete UTF-8 character has at most three bytes, and each becomes at most one replacement character."""

_WINDOW_MIN = 6
"""Tokens kept for context when the window moves."""

_WINDOW_MAX = 24
"""The window moves when it has grown to this: a token costs one decode of some 20 tokens."""

_WINDOW_LIMIT = 256
"""The window moves whether or not a clean cut was found."""


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        """The text of a sequence of tokens."""


def decode_with(decoder: Decoder) -> Callable[[Sequence[int]], str]:
    """The text of token ids, special ones left out.

    Where a tokenizer is a plain one of the tokenizers library, that is asked itself: what transformers does around it
    for arguments of all kinds takes three times as long as the decoding.
    """
    tokenizer: Any = decoder
    if (
        isinstance(tokenizer, TokenizersBackend)
        and type(tokenizer).decode is PreTrainedTokenizerBase.decode
        and type(tokenizer)._decode is TokenizersBackend._decode
    ):
        backend = tokenizer.backend_tokenizer
        return lambda ids: str(backend.decode(ids, skip_special_tokens=True))
    return lambda ids: decoder.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class Detokenizer:
    """Turns one request's tokens into text."""

    def __init__(self, decoder: Decoder) -> None:
        self._decode = decode_with(decoder)
        self._window: list[int] = []
        self._emitted = 0

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that became certain, perhaps none."""
        self._window.append(token_id)
        text = self._decode(self._window)
        held = 0
        while held < min(_HELD_MAX, len(text)) and text[-1 - held] == REPLACEMENT:
            held += 1
        piece = text[self._emitted : len(text) - held]
        self._emitted += len(piece)
        if len(self._window) >= _WINDOW_MAX:
            self._move(text)
        return piece

    def finish(self) -> str:
        """No more tokens come; returns what was held back."""
        text = self._decode(self._window)
        piece = text[self._emitted :]
        self._emitted = len(text)
        return piece

    def _move(self, text: str) -> None:
        """Forget the window's oldest tokens, if the text of the rest stays the same without them."""
        shorter = self._window[-_WINDOW_MIN:]
        tail = self._decode(shorter)
        # The first token of the shorter window may lose a space or the bytes of a cut character, so it is not compared.
        skip = len(self._decode(shorter[:1]))
        forced = len(self._window) >= _WINDOW_LIMIT
        if forced or (len(tail) > skip and text.endswith(tail[skip:])):
            self._emitted = max(0, len(tail) - (len(text) - self._emitted))
            self._window = shorter


class StopMatcher:
    """Finds stop strings in text that comes piece by piece, also across pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._pending = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Add text.

        Returns:
            The text that is certainly not part of a stop string, and whether a stop string was found: then the text
            ends before it, and nothing may be pushed any more.
        """
        if not self._stops:
            return piece, False
        self._pending += piece
        found = [at for at in (self._pending.find(stop) for stop in self._stops) if at >= 0]
        if found:
            out, self._pending = self._pending[: min(found)], ""
            return out, True
        keep = max(_overlap(self._pending, stop) for stop in self._stops)
        cut = len(self._pending) - keep
        out, self._pending = self._pending[:cut], self._pending[cut:]
        return out, False

    def finish(self) -> str:
        """No more text comes; returns what was held back."""
        out, self._pending = self._pending, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of ``stop`` that ``text`` ends with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
