"""Messages out, over the connections that trio opens and closes, or onto emulated links first."""

from __future__ import annotations

import numpy as np

from meshmoe.engine.kernels import atomics
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.primitives import address_at, int64
from meshmoe.engine.rounds.memory import call_4_int, clock_ns, copy, double_at, lock_now, put_double, unlock
from meshmoe.engine.rounds.tables import KEPT_MAX, Kept, Office, Post
from meshmoe.transport.link_model import ALONE_WAIT_S_MAX
from meshmoe.transport.native_tables import Link, Port

_NOBLOCK = 1
"""``ZMQ_DONTWAIT``"""


@jit
def send(post: Post, port: int, size_bytes: int) -> bool:
    """Send what stands in the room for messages.

    Args:
        post: The tables.
        port: Address of the connection's `Port`.
        size_bytes: How much it is.

    Returns:
        Whether it has gone; it has not where it would have to wait.
    """
    if port == 0:
        return False
    link = address_at(port, Port.LINK)
    if link == 0:
        return _hand_over(post, port, post.numbers[Office.OUT], size_bytes)
    if atomics.load(link, Link.OPEN) == 0 or address_at(port, Port.OPEN) == 0:
        return False
    at = -1
    for i in range(KEPT_MAX):
        if post.kept[i, Kept.DUE_NS] == 0:
            at = i
            break
    if at < 0:
        return False
    now_s = 1e-9 * clock_ns(post.scratch.ctypes.data)
    begins_s = max(now_s, double_at(link + 8 * Link.SETTLED_S))
    if begins_s - now_s > ALONE_WAIT_S_MAX:
        return False
    settled_s = begins_s + size_bytes / double_at(link + 8 * Link.RATE)
    put_double(link + 8 * Link.SETTLED_S, settled_s)
    arrival_s = settled_s + double_at(link + 8 * Link.DELAY_S) + _chance(post) * double_at(link + 8 * Link.JITTER_S)
    arrival_s = max(arrival_s, double_at(link + 8 * Link.LAST_S))
    put_double(link + 8 * Link.LAST_S, arrival_s)
    kept = post.kept[at]
    kept[Kept.DUE_NS], kept[Kept.PORT] = max(int64(1), int(arrival_s * 1e9)), port
    kept[Kept.LIFE], kept[Kept.SIZE_BYTES] = address_at(link, Link.LIFE), size_bytes
    copy(_room(post, at), post.numbers[Office.OUT], size_bytes)
    post.numbers[Office.KEPT] += 1
    return True


@jit
def send_due(post: Post, now_ns: int) -> int:
    """Send on what has arrived at the other ends of emulated links.

    Returns:
        When the next message will have, on the monotonic clock; 0 if there is none.
    """
    next_ns = int64(0)
    if post.numbers[Office.KEPT] == 0:
        return next_ns
    for i in range(KEPT_MAX):
        kept = post.kept[i]
        due_ns = kept[Kept.DUE_NS]
        if due_ns == 0:
            continue
        if due_ns > now_ns:
            next_ns = due_ns if next_ns == 0 else min(next_ns, due_ns)
            continue
        port = kept[Kept.PORT]
        link = address_at(port, Port.LINK)
        if link != 0 and address_at(link, Link.LIFE) != kept[Kept.LIFE]:
            atomics.add(link, Link.DROPPED, 1)
        elif not _hand_over(post, port, _room(post, i), kept[Kept.SIZE_BYTES]):
            if address_at(port, Port.OPEN) != 0 and now_ns - due_ns < 50_000_000:
                next_ns = now_ns + 50_000  # somebody is just in the socket, or libzmq takes nothing for the moment
                continue
            post.numbers[Office.DROPPED] += 1
        kept[Kept.DUE_NS] = 0
        post.numbers[Office.KEPT] -= 1
    return next_ns


@jit
def _hand_over(post: Post, port: int, at: int, size_bytes: int) -> bool:
    """Give a message to libzmq, if nobody else is in the socket and it takes it at once."""
    if address_at(port, Port.OPEN) == 0 or lock_now(port + 8 * Port.MUTEX) != 0:
        return False
    taken = False
    if address_at(port, Port.OPEN) != 0:
        socket = address_at(port, Port.SOCKET)
        taken = call_4_int(post.numbers[Office.SEND], socket, at, size_bytes, int64(_NOBLOCK)) >= 0
    unlock(port + 8 * Port.MUTEX)
    if taken:
        atomics.add(port, Port.SENT_PARCELS, 1)
        atomics.add(port, Port.SENT_BYTES, size_bytes)
    return taken


@jit
def _room(post: Post, at: int) -> int:
    return int(post.numbers[Office.KEPT_AT] + at * post.numbers[Office.OUT_BYTES])


@jit
def _chance(post: Post) -> float:
    """The next of the emulated links' random numbers, from 0 to below 1 (xorshift64, Marsaglia 2003)."""
    x = np.uint64(post.numbers[Office.CHANCE])
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    post.numbers[Office.CHANCE] = np.int64(x)
    return float(x >> np.uint64(11)) / 9007199254740992.0
