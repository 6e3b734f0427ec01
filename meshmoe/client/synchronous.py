"""The client for programs with threads or without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Unpack

import httpx
import msgspec

from meshmoe.api.error_reading import raise_for
from meshmoe.client.answer import CHAT, COMPLETIONS, Answer, Message, Options, body_of, event_of
from meshmoe.client.reach import Place, in_words, place_of
from meshmoe.node.status import NodeStatus


class Stream:
    """A text as it is written: iterate over its pieces. Closing it early cancels the writing everywhere.

    Attributes:
        answer: All that has come so far; whole once the iteration has ended.
    """

    def __init__(self, pieces: Iterator[str], answer: Answer) -> None:
        self._pieces = pieces
        self.answer = answer

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading; the node stops writing."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()


class Mesh:
    """The mesh, through one of its nodes; made by `connect`."""

    def __init__(self, place: Place) -> None:
        self._place = place
        transport = None if place.socket_path is None else httpx.HTTPTransport(uds=str(place.socket_path))
        self._http = httpx.Client(
            transport=transport, base_url=place.base_url, headers=place.headers, timeout=place.timeout
        )

    def __enter__(self) -> Mesh:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def complete(self, prompt: str, **options: Unpack[Options]) -> Answer:
        """Continue a text.

        Raises:
            MeshmoeError: The mesh cannot, or there is no node.
        """
        return _whole(self.stream(prompt, **options))

    def chat(self, messages: str | Sequence[Message], **options: Unpack[Options]) -> Answer:
        """Answer a message, or a chat.

        Raises:
            MeshmoeError: The mesh cannot, or there is no node.
        """
        return _whole(self.stream_chat(messages, **options))

    def stream(self, prompt: str, **options: Unpack[Options]) -> Stream:
        """Continue a text, piece by piece."""
        return self._stream(COMPLETIONS, prompt, options)

    def stream_chat(self, messages: str | Sequence[Message], **options: Unpack[Options]) -> Stream:
        """Answer a message, or a chat, piece by piece."""
        return self._stream(CHAT, messages, options)

    def status(self) -> NodeStatus:
        """The mesh as the node sees it.

        Raises:
            NoNodeError: There is no node.
        """
        with in_words(self._place):
            response = self._http.get("/mesh/status")
        if response.status_code >= 400:
            raise_for(response.status_code, response.content)
        return msgspec.json.decode(response.content, type=NodeStatus)

    def _stream(self, path: str, asked: str | Sequence[Message], options: Options) -> Stream:
        answer = Answer()
        return Stream(self._pieces(path, body_of(path, asked, options), answer), answer)

    def _pieces(self, path: str, body: dict[str, object], answer: Answer) -> Iterator[str]:
        with in_words(self._place), self._http.stream("POST", path, json=body) as response:
            if response.status_code >= 400:
                raise_for(response.status_code, response.read())
            for line in response.iter_lines():
                event = event_of(line)
                if event is not None and (piece := answer.add(event)):
                    yield piece
        answer.require_whole()


def _whole(stream: Stream) -> Answer:
    for _ in stream:
        pass
    return stream.answer


def connect(where: str | Path | None = None, *, api_key: str | None = None) -> Mesh:
    """A client of the node of this box. Nothing is sent yet.

    Args:
        where: The node's Unix socket, or ``http://HOST:PORT``; None looks where the commands look.
        api_key: For a node of another box.

    Raises:
        ConfigError: The path is too long for a socket.
    """
    return Mesh(place_of(where, api_key))
