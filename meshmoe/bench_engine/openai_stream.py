"""Streamed completions of any OpenAI-compatible server, with the moment at which every token came.

The client runs on the box that it measures, so there is as little as possible between the socket and the clock: h11 on
a trio stream, one request a connection, and of every event only the fields that are needed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h11
import msgspec
import trio

from meshmoe.bench_engine.wires.netns import inside
from meshmoe.core.errors import ConfigError, MeshmoeError

ANSWER_TIMEOUT_S = 300.0
"""For one answer as a whole."""

_LINE_BYTES_MAX = 8 << 20


class ServerError(MeshmoeError):
    """A server that is measured cannot be reached, or answers with something else than a completion."""


class Server(msgspec.Struct, frozen=True):
    """Where an OpenAI-compatible server listens.

    Attributes:
        name: For messages.
        host: Of its port, where it has one.
        port: The same.
        socket_path: Of its Unix socket, where it has one.
        prefix: What comes before ``/completions``.
        model: To ask for.
        drafts: What is said about drafts, to a node of ours; empty says nothing.
        network: The network namespace in which its port is; empty for this process's own.
    """

    name: str
    host: str = "localhost"
    port: int = 0
    socket_path: str = ""
    prefix: str = "/v1"
    model: str = "default"
    drafts: str = ""
    network: str = ""


@dataclass(slots=True)
class Answer:
    """One completion as its client saw it.

    Attributes:
        asked_s: When it was asked for, by trio's clock.
        arrivals_s: When each token came; tokens that come together have the same time.
        prompt_tokens: As the server counts them; 0 if it does not say.
        ids: Of the tokens, where the server tells them.
        report: The ``meshmoe`` object of our own server, else empty.
        status: Of HTTP.
        error: What went wrong, in words; empty for a whole answer.
        begun: Set with the first token, or when there will be none.
    """

    asked_s: float
    arrivals_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    ids: list[int] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    status: int = 0
    error: str = ""
    begun: trio.Event = field(default_factory=trio.Event)


class _Tokens(msgspec.Struct):
    token_ids: list[int] = []


class _Choice(msgspec.Struct):
    text: str = ""
    meshmoe: _Tokens | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Error(msgspec.Struct):
    message: str = "no reason given"


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None
    meshmoe: dict[str, Any] | None = None


_EVENT = msgspec.json.Decoder(_Event)


def parse_server(url: str) -> Server:
    """Read the address of a server, like ``http://127.0.0.1:8080`` or ``http://127.0.0.1:8080/v1``.

    Raises:
        ConfigError: It is not one.
    """
    parts = urlsplit(url)
    try:
        port = parts.port or 80
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or not port:
        raise ConfigError(f"{url!r} is not the address of a server: write http://HOST:PORT")
    return Server(url, parts.hostname, port, prefix=parts.path.rstrip("/") or "/v1")


def node_server(name: str, socket_path: Path) -> Server:
    """A node of this box by its socket."""
    return Server(name, socket_path=str(socket_path))


async def ask(server: Server, prompt: str, max_tokens: int, answer: Answer | None = None) -> Answer:
    """Have a prompt continued greedily, by exactly ``max_tokens`` tokens if the server can be told so.

    Args:
        server: Who is asked.
        prompt: A text.
        max_tokens: To write.
        answer: Filled as tokens come, for whoever looks on meanwhile.

    Returns:
        The answer; what went wrong is in it, so that one bad answer does not end a measurement.
    """
    body = {
        "model": server.model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "meshmoe": {"token_ids": True} | ({"drafts": server.drafts} if server.drafts else {}),
    }
    answer = answer or Answer(0.0)
    answer.asked_s = trio.current_time()
    try:
        with trio.fail_after(ANSWER_TIMEOUT_S):
            await _exchange(server, msgspec.json.encode(body), answer)
    except trio.TooSlowError:
        answer.error = f"no whole answer within {ANSWER_TIMEOUT_S:.0f} s"
    except (OSError, trio.BrokenResourceError, h11.RemoteProtocolError) as error:
        answer.error = f"{server.name} cannot be reached: {error}"
    except msgspec.MsgspecError as error:
        answer.error = f"{server.name} answers with something that is no completion: {error}"
    finally:
        answer.begun.set()
    return answer


async def open_stream(server: Server) -> trio.SocketStream:
    """Connect to a server.

    Raises:
        OSError: It cannot be reached.
    """
    if server.socket_path:
        return await trio.open_unix_socket(server.socket_path)
    if server.network:
        with inside(server.network):
            socket = trio.socket.socket()  # stays there, so that nothing stands between client and server
        try:
            await socket.connect((server.host, server.port))
        except BaseException:
            socket.close()
            raise
        return trio.SocketStream(socket)
    return await trio.open_tcp_stream(server.host, server.port)


async def _exchange(server: Server, body: bytes, answer: Answer) -> None:
    async with await open_stream(server) as stream:
        connection = h11.Connection(h11.CLIENT)
        headers = [
            ("host", f"{server.host}:{server.port}" if server.port else "localhost"),
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        request = h11.Request(method="POST", target=f"{server.prefix}/completions", headers=headers)
        head, end = connection.send(request), connection.send(h11.Data(body))
        await stream.send_all((head or b"") + (end or b"") + (connection.send(h11.EndOfMessage()) or b""))
        text, came_s = bytearray(), answer.asked_s
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(1 << 16))
                came_s = trio.current_time()
            elif isinstance(event, h11.Response):
                answer.status = event.status_code
            elif isinstance(event, h11.Data):
                text += event.data
                if len(text) > _LINE_BYTES_MAX:
                    raise h11.RemoteProtocolError("it sends a line without an end")
                if answer.status == 200:
                    _take_lines(text, came_s, answer)
                    if answer.arrivals_s:
                        answer.begun.set()
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                break
    if answer.status != 200:
        answer.error = _reason(bytes(text)) or f"HTTP {answer.status}"


def _take_lines(text: bytearray, came_s: float, answer: Answer) -> None:
    while (end := text.find(b"\n")) >= 0:
        line = bytes(text[:end]).strip()
        del text[: end + 1]
        if not line.startswith(b"data:") or line.endswith(b"[DONE]"):
            continue
        event = _EVENT.decode(line[5:])
        if event.error is not None:
            answer.error = event.error.message
        if event.usage is not None:
            answer.prompt_tokens = event.usage.prompt_tokens
        answer.report = event.meshmoe or answer.report
        for choice in event.choices:
            if choice.meshmoe is not None:
                answer.ids += choice.meshmoe.token_ids
                answer.arrivals_s += [came_s] * len(choice.meshmoe.token_ids)
            elif choice.text:  # other servers send a token an event
                answer.arrivals_s.append(came_s)


def _reason(body: bytes) -> str:
    try:
        error = _EVENT.decode(body).error
    except msgspec.MsgspecError:
        return ""
    return error.message if error is not None else ""
