"""A single token as text, for log-probabilities."""

from __future__ import annotations

from typing import Any

REPLACEMENT = "\ufffd"


def token_text(tokenizer: Any, token_id: int) -> str:
    """The token's own text; part of a character shows as U+FFFD."""
    return str(tokenizer.decode([token_id]))


def token_bytes(text: str) -> list[int] | None:
    """The token's bytes; None where its text does not tell, because it is only part of a character."""
    return None if REPLACEMENT in text else list(text.encode())
