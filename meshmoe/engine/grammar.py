"""Texts of a prescribed form: which tokens may come next.

A JSON schema becomes a grammar over bytes; at each step the grammar says of every token whether the text can still be
completed after it, and the sampler draws from those alone (Willard and Louf 2023 describe the method). The work is
done by the library llguidance, which refuses keywords of JSON Schema that it cannot hold to, so that what comes out is
always valid.

The grammar changes which token is drawn, never a logit that is reported.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import torch
import trio
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor

from meshmoe.core.errors import MeshmoeError, RequestError
from meshmoe.engine.model import MoeModel

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

SCHEMA_BYTES_MAX = 64 << 10
GRAMMARS_MAX = 16
"""Grammars kept ready for the next request with the same schema."""

COMPILE_S_MAX = 10.0
"""An adversarial schema can take long; its request fails, and one worker thread is busy until the library gives up."""

_SPACING: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As Python's ``json.dumps`` writes. Free white space would let a weak model write blanks to the end."""


class Constraint:
    """One text under way.

    Args:
        matcher: At the beginning of the text.
        vocabulary: Length of a row of logits.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._mask = np.zeros((vocabulary + 31) // 32, dtype=np.int32)

    def allow(self, scores: Tensor) -> Tensor:
        """Scores with those of the tokens that may not come next at minus infinity.

        Args:
            scores: ``[V]`` float32; not changed.

        Raises:
            MeshmoeError: The grammar has grown beyond the library's limits.
        """
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")[: self._vocabulary]
        return scores.masked_fill(torch.from_numpy(bits) == 0, -torch.inf)

    def accept(self, token_id: int) -> None:
        """Note a token that was drawn."""
        self._matcher.consume_token(token_id)
        self._check()

    @property
    def complete(self) -> bool:
        """Whether nothing can follow any more."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise MeshmoeError(f"response_format: the schema is too complex here ({_line(self._matcher.get_error())})")


class Grammars:
    """Makes constraints for one model.

    Args:
        model: For its tokenizer and vocabulary.
    """

    def __init__(self, model: MoeModel) -> None:
        self._model = model
        self._tokenizer: LLTokenizer | None = None
        self._ready: OrderedDict[bytes, LLMatcher] = OrderedDict()
        self._lock = trio.Lock()

    async def constraint(self, schema: str) -> Constraint:
        """Compile a JSON schema, or take it from the last ones.

        Raises:
            RequestError: It is no schema, or uses what cannot be held to; the message says what.
        """
        if len(schema.encode()) > SCHEMA_BYTES_MAX:
            raise _refusal(f"the schema is larger than {SCHEMA_BYTES_MAX >> 10} KiB")
        key = hashlib.sha256(schema.encode()).digest()
        with trio.move_on_after(COMPILE_S_MAX):
            async with self._lock:  # one compilation at a time: they are other people's programs
                if key not in self._ready:
                    self._ready[key] = await trio.to_thread.run_sync(self._compile, schema, abandon_on_cancel=True)
                    while len(self._ready) > GRAMMARS_MAX:
                        self._ready.popitem(last=False)
                self._ready.move_to_end(key)
                return Constraint(self._ready[key].deep_copy(), self._model.vocabulary_size)
        raise _refusal(f"the schema took longer than {COMPILE_S_MAX:.0f} s to compile: simplify it")

    def _compile(self, schema: str) -> LLMatcher:
        """In a worker thread."""
        if self._tokenizer is None:
            try:
                self._tokenizer = from_tokenizer(
                    self._model.tokenizer, self._model.vocabulary_size, sorted(self._model.eos_ids) or None
                )
            except Exception as error:  # the library says what it cannot read by whatever it raises
                raise _refusal(f"this model's tokenizer allows no schema ({_line(str(error))})") from None
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_SPACING)
        except ValueError as error:
            raise _refusal(_line(str(error))) from None
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LLParserLimits())
        if matcher.is_error():
            raise _refusal(_line(matcher.get_error()))
        return matcher


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _refusal(what: str) -> RequestError:
    return RequestError(f"response_format: {what}", param="response_format", code="invalid_value")
