"""Server-sent events in OpenAI's shape: one ``data:`` line a chunk, ``data: [DONE]`` at the end.

The status line waits for the first event of the engine, so that whatever fails before it is still an ordinary error
response. What fails later comes as ``data: {"error": ...}``, which OpenAI's clients raise, and ends the stream.
"""

from __future__ import annotations

from typing import Any

import trio
from msgspec import UNSET
from starlette.types import Receive, Scope, Send

from meshmoe.api.answer import Answer, AnyChoice
from meshmoe.api.cause import cause
from meshmoe.api.choices import ChoiceEvent, receive_ready, run_choices
from meshmoe.api.errors import ClientGoneError, error_answer
from meshmoe.api.json_lines import encode_line
from meshmoe.api.report import GenerationReport
from meshmoe.api.watch import watching
from meshmoe.engine.request import FinishEvent

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Asks a proxy in front (nginx has made this name common) not to hold the chunks back.
    (b"x-accel-buffering", b"no"),
]
_DONE = b"data: [DONE]\n\n"


class EventStream:
    """The ASGI response that runs an answer's generations and writes them down as they come."""

    def __init__(self, answer: Answer, client_gone: trio.Event, stopping: trio.Event) -> None:
        self._answer = answer
        self._client_gone = client_gone
        self._stopping = stopping
        self._started = False
        self._opened: set[int] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the stream; cancels the generations as soon as the client is gone."""
        complete = False
        try:
            async with (
                watching(self._client_gone, self._stopping) as watch,
                run_choices(self._answer.service, self._answer.generations) as events,
            ):
                while ready := await receive_ready(events):
                    await self._send(send, b"".join(self._chunks(ready)))
                await self._send(send, _DONE, more=False)
                complete = True
            if not complete:
                watch.raise_for_end()
        except ClientGoneError:
            raise
        except Exception as group:
            error = cause(group)
            if not self._started:
                raise error from None
            await self._send(send, self._line(error_answer(error)), more=False)

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        # Shielded, because a message that is cancelled half-way would leave hypercorn and its HTTP state of two minds.
        # It cannot last: writes have a deadline, and a stopping server closes the socket.
        with trio.CancelScope(shield=True):
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await send({"type": "http.response.body", "body": data, "more_body": more})

    def _chunks(self, ready: list[ChoiceEvent]) -> list[bytes]:
        """Lines for ``ready``; among them, at the end, the one that carries usage and the ``meshmoe`` object."""
        answer = self._answer
        lines: list[bytes] = []
        for index, event in ready:
            shape = answer.shapes[index]
            if index not in self._opened:
                self._opened.add(index)
                lines += self._choice_line(shape.opening())
            if not isinstance(event, FinishEvent):
                lines += self._choice_line(shape.piece(event))
                continue
            answer.finished.append(event.stats)
            last = len(answer.finished) == len(answer.shapes)
            if last and not answer.include_usage:
                lines += self._choice_line(shape.ending(event), answer.report())
                continue
            lines += self._choice_line(shape.ending(event))
            if last:
                lines.append(self._line(answer.envelope([], answer.usage(), answer.report())))
        return lines

    def _choice_line(self, choice: AnyChoice | None, extension: GenerationReport | None = None) -> list[bytes]:
        if choice is None:
            return []
        # Asked for usage, OpenAI's chunks carry the field in all chunks, null but for the last.
        usage = None if self._answer.include_usage else UNSET
        return [self._line(self._answer.envelope([choice], usage, UNSET if extension is None else extension))]

    def _line(self, content: Any) -> bytes:
        return b"data: " + encode_line(content) + b"\n\n"
