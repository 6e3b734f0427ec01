"""From a chat to one text.

A tokenizer that brings a chat template is asked to apply it. Base models bring none; for them a chat is written as the
plainest transcript that a model trained on text continues sensibly, and the next speaker's label ends the answer:

    <the system message, if any>

    User: Hello.
    Assistant: Good day.
    User: What is a mesh?
    Assistant:
"""

from __future__ import annotations

from typing import Any

from meshmoe.api.request_types import ChatMessage
from meshmoe.core.errors import RequestError

_LABELS = {"user": "User", "assistant": "Assistant"}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

TRANSCRIPT_STOPS = ("\nUser:",)
"""Added to the client's own stop strings when the default transcript is used."""


def render_chat(tokenizer: Any, messages: list[ChatMessage]) -> tuple[str, tuple[str, ...]]:
    """Write a chat as the text that the model continues.

    Args:
        tokenizer: The model's.
        messages: The chat, oldest first.

    Returns:
        The text, and stop strings that its format needs.

    Raises:
        RequestError: A message has a role or a content that this server cannot represent, or that the model's own
            template refuses (some insist that roles alternate, say).
    """
    plain = [{"role": _role(message, i), "content": _text(message, i)} for i, message in enumerate(messages)]
    if not tokenizer.chat_template:
        return _transcript(plain), TRANSCRIPT_STOPS
    # Templates are programs of the model's authors: whatever one raises says that it cannot represent this chat.
    try:
        text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        raise RequestError(f"messages: the model's chat template refuses them: {error}", param="messages") from error
    return str(text), ()


def _transcript(messages: list[dict[str, str]]) -> str:
    system = "\n".join(m["content"] for m in messages if m["role"] == "system")
    turns = [f"{_LABELS[m['role']]}: {m['content']}" for m in messages if m["role"] != "system"]
    return (f"{system}\n\n" if system else "") + "\n".join([*turns, "Assistant:"])


def _role(message: ChatMessage, index: int) -> str:
    if message.role in ("tool", "function"):
        raise _refusal(f"role {message.role!r} is not supported: this server calls no tools", index, "role")
    if message.role not in _ROLES:
        raise _refusal(f"role {message.role!r} is not one of {', '.join(_ROLES)}", index, "role")
    return _ROLES[message.role]


def _text(message: ChatMessage, index: int) -> str:
    if message.tool_calls:
        raise _refusal("tool calls are not supported: this server calls no tools", index, "tool_calls")
    if message.content is None:
        raise _refusal("it has no text", index, "content")
    if isinstance(message.content, str):
        return message.content
    texts = []
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise _refusal(f"a part of type {part.type!r} is not supported: this model reads text", index, "content")
        texts.append(part.text)
    return "".join(texts)


def _refusal(what: str, index: int, field: str) -> RequestError:
    return RequestError(f"messages[{index}].{field}: {what}", param=f"messages[{index}].{field}", code="invalid_value")
