"""What a link between two boxes does: round trips and bulk rate, over plain TCP, in the words of a topology file.

One box listens (`serve_links`), the other asks (`measure_link`). A round trip is a small message echoed on one
connection without Nagle's delay, as an expert call of one token is; the rate is that of a stream of zeros for some
seconds, each way. The listener serves one asker at a time, for a bounded time, and stores nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import numpy as np
import trio

from meshmoe.core.errors import PeerError

PORT = 7340
CALL_BYTES = 2048
"""About the hidden state of one token in bfloat16, with its frame."""

ROUND_TRIPS = 400
BULK_S = 3.0
BULK_BYTES = 256 << 10
VISIT_S_MAX = 60.0
CONNECT_S_MAX = 5.0

_ECHO, _TAKE, _GIVE = b"e", b"t", b"g"
Result = TypeVar("Result")

_COUNT = struct.Struct("!Q")


class LinkFigures(msgspec.Struct):
    """A measured link.

    Attributes:
        host: The other end.
        rtt_ms, rtt_p99_ms: Round trip of a message of `CALL_BYTES`, median and 99th percentile.
        jitter_ms: Half of the spread between the 5th and the 95th percentile of round trips, a one-way figure.
        rate_out_bytes_per_s, rate_in_bytes_per_s: Bulk, to there and from there.
    """

    host: str
    rtt_ms: float
    rtt_p99_ms: float
    jitter_ms: float
    rate_out_bytes_per_s: float
    rate_in_bytes_per_s: float


async def serve_links(
    host: str, port: int, ready: Callable[[int], None] = lambda _port: None, handled: Callable[[], None] = lambda: None
) -> None:
    """Answer measurements until cancelled.

    Args:
        host: To listen on.
        port: 0 takes a free one.
        ready: Told the port.
        handled: Told when somebody has been served.
    """
    turn = trio.Lock()

    async def visit(stream: trio.SocketStream) -> None:
        try:
            async with turn:
                with trio.move_on_after(VISIT_S_MAX):
                    await _visit(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)
            handled()

    listeners = await trio.open_tcp_listeners(port, host=host, backlog=4)
    ready(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(visit, listeners)


async def _visit(stream: trio.SocketStream) -> None:
    while what := await stream.receive_some(1):
        if what == _ECHO:
            for _ in range(ROUND_TRIPS):
                await stream.send_all(await _exactly(stream, CALL_BYTES))
        elif what == _TAKE:
            await stream.send_all(_COUNT.pack(await _drain(stream)))
        elif what == _GIVE:
            await _flood(stream)
        else:
            return


async def measure_link(host: str, port: int) -> LinkFigures:
    """Measure the link to a box that listens.

    Raises:
        PeerError: Nobody listens there, or it went away.
    """
    try:
        round_trips = np.array(await _connected(host, port, _round_trips)) * 1000
        out = await _connected(host, port, _push)
        back = await _connected(host, port, _pull)
    except (OSError, trio.TooSlowError, trio.BrokenResourceError) as error:
        reason = str(error) or "no answer in time"
        raise PeerError(
            f"cannot measure the link to {host}:{port} ({reason}): is `meshmoe bench links --listen` running there?"
        ) from None
    low, median, high, late = np.percentile(round_trips, [5, 50, 95, 99]).tolist()
    return LinkFigures(host, median, late, (high - low) / 2, out, back)


async def _connected(host: str, port: int, work: Callable[[trio.SocketStream], Awaitable[Result]]) -> Result:
    with trio.fail_after(CONNECT_S_MAX):
        stream = await trio.open_tcp_stream(host, port)
    async with stream:
        with trio.fail_after(VISIT_S_MAX):
            return await work(stream)


async def _round_trips(stream: trio.SocketStream) -> list[float]:
    stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
    await stream.send_all(_ECHO)
    took_s = []
    for _ in range(ROUND_TRIPS):
        begun = trio.current_time()
        await stream.send_all(bytes(CALL_BYTES))
        await _exactly(stream, CALL_BYTES)
        took_s.append(trio.current_time() - begun)
    return took_s[ROUND_TRIPS // 10 :]


async def _push(stream: trio.SocketStream) -> float:
    await stream.send_all(_TAKE)
    begun = trio.current_time()
    await _flood(stream)
    await stream.send_eof()
    (count,) = _COUNT.unpack(await _exactly(stream, _COUNT.size))
    return float(count) / (trio.current_time() - begun)


async def _pull(stream: trio.SocketStream) -> float:
    await stream.send_all(_GIVE)
    begun, count = trio.current_time(), 0
    while trio.current_time() < begun + BULK_S * 0.9:  # before the flood ends
        data = await stream.receive_some(BULK_BYTES)
        if not data:
            break
        count += len(data)
    return count / (trio.current_time() - begun)


async def _flood(stream: trio.SocketStream) -> None:
    end = trio.current_time() + BULK_S
    zeros = bytes(BULK_BYTES)
    while trio.current_time() < end:
        await stream.send_all(zeros)


async def _drain(stream: trio.SocketStream) -> int:
    count = 0
    while data := await stream.receive_some(BULK_BYTES):
        count += len(data)
    return count


async def _exactly(stream: trio.SocketStream, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = await stream.receive_some(length - len(data))
        if not piece:
            raise trio.BrokenResourceError("the other end closed")
        data += piece
    return bytes(data)
