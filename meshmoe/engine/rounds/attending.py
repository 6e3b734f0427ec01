"""The thread attends to its lane: takes what has come, sends what is due, and waits, all without the interpreter.

What is plain is done here: peers' calls served, answers taken in. Whatever else has come stands in the two messages at
``Office.MESSAGES``, and ``Office.LEFT`` says so, until somebody has taken it from there; nothing is received before.

Who wants the thread sets the slice's cut (`kernels.limit`) and writes to the lane's pipe, in this order; here the pipe
is watched while the thread sleeps, and the cut is looked at before. So one of the two is seen.
"""

from __future__ import annotations

from meshmoe.engine.kernels import atomics
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.limit import CUT, SLICE_NS, UNTIL_NS
from meshmoe.engine.kernels.primitives import Tag, address_at, int64
from meshmoe.engine.lean.attention import Ints
from meshmoe.engine.rounds.answers import take_in
from meshmoe.engine.rounds.asking import PREFIX_BYTES
from meshmoe.engine.rounds.memory import (
    byte_at,
    call_1,
    call_1_int,
    call_2,
    call_3_int,
    clock_ns,
    differ,
    int32_at,
    length,
    put_int32,
    read_from,
    wait_for,
)
from meshmoe.engine.rounds.sending import send_due
from meshmoe.engine.rounds.serving import serve
from meshmoe.engine.rounds.tables import (
    KEY_BYTES_MAX,
    ROUNDS_MAX,
    Group,
    Office,
    Peer,
    Post,
    Posts,
    Round,
    Sender,
)

NOTHING, DONE, FOREIGN, ODD, CALLED, LATE, OTHER = range(7)
"""Why `attend` has returned: the time is over; the round waited for is; a message for others is in ``MESSAGES``; one of
too many frames is; another thread wants this one; a message's deadline has passed; another round is over."""

_NOBLOCK = 1
_MESSAGES_MAX = 16
"""Taken before everything else is looked at."""

MESSAGE_BYTES = 64
"""Of a ``zmq_msg_t``."""

_POLLIN = 1

_EARLY_NS_MAX = 60_000
_SPUN_NS_AIM = 5_000
_EARLY_STEP_NS_MAX = 40_000

# Places in `Post.scratch`: the clock's two numbers, what ``ppoll`` watches, its time, and what is read from the pipe.
_WATCHED, _TIME, _READ = 2, 4, 6
SCRATCH_NUMBERS = 6 + 16


@jit
def attend(tag: Tag, desk: int, posts: Posts, experts: Ints, limit: int, at: int, until_ns: int) -> int:
    """Attend to the lane.

    Args:
        tag: Dtype of the model.
        desk: See `kernels.crew.linear`.
        posts: The tables.
        experts: ``[MoE layers, experts, 2]``: addresses of what is resident.
        limit: Of the slice, see `kernels.limit`.
        at: The round that is waited for; -1 for none.
        until_ns: On the monotonic clock, when to return at the latest; 0 for once all that has come is taken.

    Returns:
        One of the numbers above.
    """
    post = posts[0]
    numbers, room = post.numbers, post.scratch.ctypes.data
    finished = numbers[Office.FINISHED]
    while True:
        if numbers[Office.LEFT] == 0 and (numbers[Office.EMPTY] == 0 or _look(post, int64(0), False) & 1 != 0):
            for _ in range(_MESSAGES_MAX):
                found = _receive(tag, desk, post, experts)
                if found != DONE:
                    numbers[Office.LEFT] = found
                    break
                if at >= 0 and post.rounds[at, Round.STATE] != 1:
                    return DONE
        now_ns = clock_ns(room)
        due_ns = send_due(post, now_ns)
        if at >= 0 and post.rounds[at, Round.STATE] != 1:
            return DONE
        if numbers[Office.FINISHED] != finished:
            return OTHER
        if numbers[Office.LEFT] != 0:
            return int(numbers[Office.LEFT])
        if limit != 0 and atomics.load(limit, CUT) != 0:
            return CALLED
        if until_ns == 0 or now_ns >= until_ns:
            return NOTHING
        if numbers[Office.EMPTY] == 0:
            continue
        sleep_until_ns = _deadline_ns(post, until_ns)
        if sleep_until_ns <= now_ns:
            return LATE
        if numbers[Office.DUE_NS] != 0:
            if numbers[Office.DUE_NS] <= now_ns:
                return CALLED
            sleep_until_ns = min(sleep_until_ns, numbers[Office.DUE_NS])
        if due_ns != 0 and due_ns - numbers[Office.EARLY_NS] < sleep_until_ns:
            called = _sleep(post, due_ns - numbers[Office.EARLY_NS])
            now_ns = clock_ns(room)
            if not called and due_ns - now_ns <= numbers[Office.EARLY_NS]:
                # A thread that sleeps until then wakes up late, which a link that is real would not do to it.
                change_ns = max(-_EARLY_STEP_NS_MAX, min(_SPUN_NS_AIM - (due_ns - now_ns), _EARLY_STEP_NS_MAX))
                early_ns = numbers[Office.EARLY_NS] + change_ns // 8
                numbers[Office.EARLY_NS] = max(int64(0), min(early_ns, int64(_EARLY_NS_MAX)))
                while clock_ns(room) < due_ns:
                    atomics.pause()
        else:
            called = _sleep(post, sleep_until_ns)
        if called:
            return CALLED


@jit
def _deadline_ns(post: Post, until_ns: int) -> int:
    """When the first deadline of an open message passes, or ``until_ns``."""
    for at in range(ROUNDS_MAX):
        if post.rounds[at, Round.STATE] == 1:
            for g in range(post.rounds[at, Round.GROUPS]):
                if post.groups[at, g, Group.STATE] == 1:
                    until_ns = min(until_ns, post.groups[at, g, Group.DEADLINE_NS])
    return until_ns


@jit
def _sleep(post: Post, until_ns: int) -> bool:
    """Sleep until something has come, another thread calls, or that time; returns whether one calls."""
    room = post.scratch.ctypes.data
    while post.numbers[Office.SPARE] != 0:
        now_ns = clock_ns(room)
        if now_ns >= post.numbers[Office.AWAKE_UNTIL_NS]:
            break
        found = _look(post, int64(0), True)
        if found != 0 or now_ns >= until_ns:
            return found & 2 != 0
        for _ in range(32):
            atomics.pause()
    wait_ns = until_ns - clock_ns(room)
    if wait_ns <= 0:
        return False
    return _look(post, wait_ns, True) & 2 != 0


@jit
def _look(post: Post, wait_ns: int, woken: bool) -> int:
    """Whether something may have come (1), and whether another thread calls (2), which is then forgotten."""
    room = post.scratch.ctypes.data
    watched, time = room + 8 * _WATCHED, room + 8 * _TIME
    put_int32(watched, post.numbers[Office.DESCRIPTOR])
    put_int32(watched + 4, int64(_POLLIN))  # and nothing found
    put_int32(watched + 8, post.numbers[Office.WAKE])
    put_int32(watched + 12, int64(_POLLIN))
    atomics.put(time, 0, wait_ns // 1_000_000_000)
    atomics.put(time, 1, wait_ns % 1_000_000_000)
    if wait_for(watched, 2 if woken else 1, time, 0) <= 0:
        return 0
    found = 1 if int32_at(watched + 4) >> 16 != 0 else 0
    if woken and int32_at(watched + 12) >> 16 != 0:
        read_from(post.numbers[Office.WAKE], room + 8 * _READ, 128)
        found |= 2
    return found


@jit
def _receive(tag: Tag, desk: int, post: Post, experts: Ints) -> int:
    """Take one message: `NOTHING` if there is none, `DONE` if it was dealt with, else `FOREIGN` or `ODD`."""
    numbers = post.numbers
    name, body = numbers[Office.MESSAGES], numbers[Office.MESSAGES] + MESSAGE_BYTES
    if call_3_int(numbers[Office.RECV], name, numbers[Office.SOCKET], int64(_NOBLOCK)) < 0:
        numbers[Office.EMPTY] = 1
        return NOTHING
    numbers[Office.EMPTY] = 0
    if call_1_int(numbers[Office.MORE], name) == 0:
        return ODD
    if call_3_int(numbers[Office.RECV], body, numbers[Office.SOCKET], int64(_NOBLOCK)) < 0:
        return ODD
    if call_1_int(numbers[Office.MORE], body) != 0:
        while call_1_int(numbers[Office.MORE], body) != 0:
            if call_3_int(numbers[Office.RECV], body, numbers[Office.SOCKET], int64(_NOBLOCK)) < 0:
                break
        return ODD
    sender = _sender(post, name, body)
    if sender < 0:
        return FOREIGN
    peer = post.senders[sender, Sender.PEER]
    data, size_bytes = call_1(numbers[Office.DATA], body), call_1(numbers[Office.SIZE], body)
    if peer < 0 or size_bytes < PREFIX_BYTES or byte_at(data) != 3:
        return FOREIGN
    header_bytes, slip_bytes = int32_at(data + 1), int32_at(data + 5)
    left = size_bytes - PREFIX_BYTES - header_bytes - slip_bytes
    if header_bytes < 0 or slip_bytes < 0 or left < 0:
        return FOREIGN
    header, slip = data + PREFIX_BYTES, data + PREFIX_BYTES + header_bytes
    done = False
    if _is(header, header_bytes, numbers[Office.REPLY_HEADER], numbers[Office.REPLY_HEADER_BYTES]):
        done = take_in(tag, post, peer, slip, slip_bytes, left)
    elif _is(header, header_bytes, numbers[Office.CALL_HEADER], numbers[Office.CALL_HEADER_BYTES]):
        done = serve(tag, desk, post, experts, peer, slip, slip_bytes, left)
    if not done:
        return FOREIGN
    post.peers[peer, Peer.RECEIVED_PARCELS] += 1
    post.peers[peer, Peer.RECEIVED_BYTES] += size_bytes - PREFIX_BYTES
    return DONE


@jit
def _is(at: int, size_bytes: int, expected: int, expected_bytes: int) -> bool:
    return size_bytes == expected_bytes and differ(at, expected, size_bytes) == 0


@jit
def _sender(post: Post, name: int, body: int) -> int:
    """Which of the known senders a message is from, by its connection's name and the key that came with it; or -1."""
    numbers = post.numbers
    at, size_bytes = call_1(numbers[Office.DATA], name), call_1(numbers[Office.SIZE], name)
    for i in range(numbers[Office.SENDERS]):
        known = post.senders[i]
        if known[Sender.NAME_BYTES] == size_bytes and differ(post.names[i].ctypes.data, at, size_bytes) == 0:
            key_bytes = known[Sender.KEY_BYTES]
            if key_bytes == 0:
                return i  # there are no keys
            key = call_2(numbers[Office.GETS], body, numbers[Office.USER_ID])
            if key == 0 or length(key, int64(KEY_BYTES_MAX)) != key_bytes:
                return -1
            return i if differ(post.keys[i].ctypes.data, key, key_bytes) == 0 else -1
    return -1


@jit
def wait(tag: Tag, desk: int, posts: Posts, experts: Ints, limit: int, at: int, patience_ns: int) -> int:
    """Wait for a round, and count for how long; for the parameters see `attend`.

    Args:
        patience_ns: For how long at most; 0 for not at all.

    Returns:
        As `attend`; `DONE` only if all of the round was answered, else `LATE`.
    """
    post = posts[0]
    began_ns = clock_ns(post.scratch.ctypes.data)
    found = attend(tag, desk, posts, experts, limit, at, began_ns + patience_ns if patience_ns else int64(0))
    now_ns = clock_ns(post.scratch.ctypes.data)
    post.rounds[at, Round.WAITED_NS] += now_ns - began_ns
    post.numbers[Office.WAITED_NS] += now_ns - began_ns
    if limit != 0 and address_at(limit, UNTIL_NS) != 0:
        atomics.put(limit, UNTIL_NS, now_ns + SLICE_NS)  # what it was to end for has just been looked at
    return LATE if found == DONE and post.rounds[at, Round.FAILED] != 0 else found


@jit
def look(tag: Tag, desk: int, posts: Posts, experts: Ints, limit: int) -> bool:
    """What a slice is to end for: look at it here; returns whether there is nothing left that needs the interpreter."""
    post = posts[0]
    if post.numbers[Office.OPEN] == 0:
        return False
    if attend(tag, desk, posts, experts, limit, int64(-1), int64(0)) != NOTHING or post.numbers[Office.EMPTY] == 0:
        return False
    if address_at(limit, UNTIL_NS) != 0:
        atomics.put(limit, UNTIL_NS, clock_ns(post.scratch.ctypes.data) + SLICE_NS)
    return True
