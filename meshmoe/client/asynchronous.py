"""The client for programs on trio (or asyncio)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Unpack

import httpx
import msgspec

from meshmoe.api.error_reading import raise_for
from meshmoe.client.answer import CHAT, COMPLETIONS, Answer, Message, Options, body_of, event_of
from meshmoe.client.reach import Place, in_words, place_of
from meshmoe.node.status import NodeStatus


class AsyncStream:
    """A text as it is written: ``async with`` it, and iterate over its pieces. Leaving early cancels the writing.

    Attributes:
        answer: All that has come so far; whole once the iteration has ended.
    """

    def __init__(self, http: httpx.AsyncClient, place: Place, path: str, body: dict[str, object]) -> None:
        self._http = http
        self._place = place
        self._path = path
        self._body = body
        self._response: httpx.Response | None = None
        self.answer = Answer()

    async def __aenter__(self) -> AsyncStream:
        with in_words(self._place):
            request = self._http.build_request("POST", self._path, json=self._body)
            response = await self._http.send(request, stream=True)
            self._response = response
            if response.status_code >= 400:
                try:
                    raise_for(response.status_code, await response.aread())
                finally:
                    await response.aclose()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._response is not None:
            await self._response.aclose()

    async def __aiter__(self) -> AsyncIterator[str]:
        assert self._response is not None, "use it in `async with`"
        with in_words(self._place):
            async with aclosing(self._response.aiter_lines()) as lines:  # type: ignore[type-var]  # a generator, typed less
                async for line in lines:
                    event = event_of(line)
                    if event is not None and (piece := self.answer.add(event)):
                        yield piece
        self.answer.require_whole()


class AsyncMesh:
    """The mesh, through one of its nodes; made by `connect_async`."""

    def __init__(self, place: Place) -> None:
        self._place = place
        transport = None if place.socket_path is None else httpx.AsyncHTTPTransport(uds=str(place.socket_path))
        self._http = httpx.AsyncClient(
            transport=transport, base_url=place.base_url, headers=place.headers, timeout=place.timeout
        )

    async def __aenter__(self) -> AsyncMesh:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Give the connections back."""
        await self._http.aclose()

    async def complete(self, prompt: str, **options: Unpack[Options]) -> Answer:
        """Continue a text.

        Raises:
            MeshmoeError: The mesh cannot, or there is no node.
        """
        return await _whole(self.stream(prompt, **options))

    async def chat(self, messages: str | Sequence[Message], **options: Unpack[Options]) -> Answer:
        """Answer a message, or a chat.

        Raises:
            MeshmoeError: The mesh cannot, or there is no node.
        """
        return await _whole(self.stream_chat(messages, **options))

    def stream(self, prompt: str, **options: Unpack[Options]) -> AsyncStream:
        """Continue a text, piece by piece."""
        return AsyncStream(self._http, self._place, COMPLETIONS, body_of(COMPLETIONS, prompt, options))

    def stream_chat(self, messages: str | Sequence[Message], **options: Unpack[Options]) -> AsyncStream:
        """Answer a message, or a chat, piece by piece."""
        return AsyncStream(self._http, self._place, CHAT, body_of(CHAT, messages, options))

    async def status(self) -> NodeStatus:
        """The mesh as the node sees it.

        Raises:
            NoNodeError: There is no node.
        """
        with in_words(self._place):
            response = await self._http.get("/mesh/status")
        if response.status_code >= 400:
            raise_for(response.status_code, response.content)
        return msgspec.json.decode(response.content, type=NodeStatus)


async def _whole(stream: AsyncStream) -> Answer:
    async with stream:
        async for _ in stream:
            pass
    return stream.answer


def connect_async(where: str | Path | None = None, *, api_key: str | None = None) -> AsyncMesh:
    """As `connect`, for trio and asyncio.

    Args:
        where: The node's Unix socket, or ``http://HOST:PORT``; None looks where the commands look.
        api_key: For a node of another box.

    Raises:
        ConfigError: The path is too long for a socket.
    """
    return AsyncMesh(place_of(where, api_key))
