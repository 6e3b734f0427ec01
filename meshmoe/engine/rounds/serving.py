"""A peer's call as a slip is served: checked, computed, answered.

Whatever is not plain (a slip that is none, experts that are not here, too many rows, nobody to answer to) is left to
the general way with nothing done, which knows what to tell a peer.
"""

from __future__ import annotations

from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.primitives import Tag, address_at, int64, size_of
from meshmoe.engine.lean.attention import Ints
from meshmoe.engine.lean.little import serve_rows
from meshmoe.engine.rounds.asking import PREFIX_BYTES
from meshmoe.engine.rounds.memory import clock_ns, copy, int32_at, put_byte, put_int32
from meshmoe.engine.rounds.sending import send
from meshmoe.engine.rounds.tables import Limit, Office, Peer, Post
from meshmoe.wire.slips import CALL_NUMBERS, REPLY_NUMBERS

_LIMIT_BYTES = 8 * len(Limit)
_SOON_NS = 5_000_000


@jit
def serve(tag: Tag, desk: int, post: Post, experts: Ints, peer: int, slip: int, slip_bytes: int, rest: int) -> bool:
    """Serve a call.

    Args:
        tag: Dtype of the model.
        desk: See `kernels.crew.linear`.
        post: The tables.
        experts: ``[MoE layers, experts, 2]``: addresses of what is resident.
        peer: Who asks: a row of ``post.peers``.
        slip: Address of the slip; the hidden states follow it.
        slip_bytes: Of it.
        rest: Bytes after it.

    Returns:
        Whether it was served.
    """
    numbers, asked = post.numbers, post.asked
    began_ns = clock_ns(post.scratch.ctypes.data)
    count, hidden = slip_bytes // 4, numbers[Office.HIDDEN]
    row_bytes = hidden * size_of(tag)
    if peer < 0 or post.peers[peer, Peer.PORT] == 0 or count < CALL_NUMBERS or count * 4 != slip_bytes:
        return False
    number, layer, dtype = int32_at(slip), int32_at(slip + 4), int32_at(slip + 12)
    rows, columns, wanted = int32_at(slip + 16), int32_at(slip + 20), int32_at(slip + 24)
    if number < 0 or dtype != numbers[Office.DTYPE] or columns != hidden or not 0 <= layer < numbers[Office.LAYERS]:
        return False
    limits = numbers[Office.LIMITS] + _LIMIT_BYTES * layer
    rows_max, experts_max = address_at(limits, Limit.ROWS), address_at(limits, Limit.EXPERTS)
    if not (0 < rows <= rows_max and 0 < wanted <= experts_max) or rest != rows * row_bytes:
        return False
    at, end, outputs = CALL_NUMBERS, 0, 0
    for _ in range(wanted):
        if at + 2 > count:
            return False
        expert, some = int32_at(slip + 4 * at), int32_at(slip + 4 * at + 4)
        at += 2
        if some < 0 or at + some > count:
            return False
        computed = some if some > 0 else rows
        outputs += computed
        if outputs > rows_max or end + 2 + computed > len(asked):
            return False
        asked[end], asked[end + 1] = expert, computed
        for m in range(computed):
            asked[end + 2 + m] = int32_at(slip + 4 * (at + m)) if some > 0 else m
        at += some
        end += 2 + computed
    header_bytes = numbers[Office.REPLY_HEADER_BYTES]
    size_bytes = PREFIX_BYTES + header_bytes + 4 * REPLY_NUMBERS + outputs * row_bytes
    if at != count or size_bytes > numbers[Office.OUT_BYTES]:
        return False
    x, y, width = numbers[Office.X], numbers[Office.Y], address_at(limits, Limit.WIDTH)
    copy(x, slip + slip_bytes, rest)  # to where it is aligned
    done = serve_rows(tag, desk, experts[layer], asked[:end], rows, x, y, numbers[Office.SCRATCH], hidden, width)
    if done != outputs:
        return False
    out, reply = numbers[Office.OUT], numbers[Office.OUT] + PREFIX_BYTES + header_bytes
    put_byte(out, int64(3))
    put_int32(out + 1, header_bytes)
    put_int32(out + 5, int64(4 * REPLY_NUMBERS))
    copy(out + PREFIX_BYTES, numbers[Office.REPLY_HEADER], header_bytes)
    now_ns = clock_ns(post.scratch.ctypes.data)
    put_int32(reply, number)
    put_int32(reply + 4, min(int64(0x7FFFFFFF), (now_ns - began_ns) // 1000))
    put_int32(reply + 8, dtype)
    put_int32(reply + 12, outputs)
    put_int32(reply + 16, hidden)
    copy(reply + 4 * REPLY_NUMBERS, y, outputs * row_bytes)
    if not send(post, post.peers[peer, Peer.PORT], size_bytes):
        return False
    numbers[Office.SERVED] += 1
    numbers[Office.ROWS_SERVED] += outputs
    soon_ns = 2 * (began_ns - numbers[Office.SERVED_NS])  # a peer that writes asks again about as soon as it did
    numbers[Office.SERVED_NS] = began_ns
    if soon_ns <= _SOON_NS:
        numbers[Office.AWAKE_UNTIL_NS] = max(numbers[Office.AWAKE_UNTIL_NS], began_ns + soon_ns)
    return True
