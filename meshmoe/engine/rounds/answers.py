"""A peer's answer to a compiled round is taken in, and a round comes to its end."""

from __future__ import annotations

from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.primitives import F32_TAG, Tag, read, size_of, write
from meshmoe.engine.lean.attention import Ints
from meshmoe.engine.rounds.memory import clock_ns, copy, int32_at
from meshmoe.engine.rounds.tables import (
    LOG_MAX,
    ROUNDS_MAX,
    Entry,
    Group,
    Office,
    Pair,
    Peer,
    Post,
    Posts,
    Round,
    Tally,
)
from meshmoe.wire.slips import REPLY_NUMBERS


@jit
def take_in(tag: Tag, post: Post, peer: int, slip: int, slip_bytes: int, rest: int) -> bool:
    """Put the outputs of a reply where they belong.

    Args:
        tag: Dtype of the model.
        post: The tables.
        peer: Who answers: a row of ``post.peers``.
        slip: Address of the slip; the outputs follow it.
        slip_bytes: Of it.
        rest: Bytes after it.

    Returns:
        Whether it answered an open message as it should.
    """
    hidden = post.numbers[Office.HIDDEN]
    if slip_bytes != 4 * REPLY_NUMBERS or peer < 0:
        return False
    number, dtype, rows, columns = int32_at(slip), int32_at(slip + 8), int32_at(slip + 12), int32_at(slip + 16)
    for at in range(ROUNDS_MAX):
        round_ = post.rounds[at]
        if round_[Round.STATE] != 1:
            continue
        for g in range(round_[Round.GROUPS]):
            group = post.groups[at, g]
            if group[Group.STATE] != 1 or group[Group.ID] != number:
                continue
            expected = peer == group[Group.PEER] and rows == group[Group.PAIRS] and columns == hidden
            if not expected or dtype != post.numbers[Office.DTYPE] or rest != rows * hidden * size_of(tag):
                return False
            if not _spread(tag, post, at, g, slip + slip_bytes):
                return False
            _answered(post, at, g, rows, rest)
            return True
    return False


@jit
def _spread(tag: Tag, post: Post, at: int, g: int, data: int) -> bool:
    """Widen rows to float32 where they belong; returns whether all of it was finite."""
    round_, hidden, bad = post.rounds[at], post.numbers[Office.HIDDEN], 0
    row, row_bytes = post.numbers[Office.X], hidden * size_of(tag)
    for i in range(round_[Round.PAIRS]):
        pair = post.pairs[at, i]
        if pair[Pair.GROUP] == g:
            to = round_[Round.OUTPUTS] + 4 * (pair[Pair.ROW] * round_[Round.TOP_K] + pair[Pair.PLACE]) * hidden
            copy(row, data, row_bytes)  # to where it is aligned
            for n in range(hidden):
                number = read(tag, row, n)
                bad += number - number != 0
                write(F32_TAG, to, n, number)
            data += row_bytes
    return bad == 0


@jit
def _answered(post: Post, at: int, g: int, rows: int, size_bytes: int) -> None:
    round_, group, numbers = post.rounds[at], post.groups[at, g], post.numbers
    group[Group.STATE] = 2
    round_[Round.OPEN] -= 1
    round_[Round.RECEIVED_BYTES] += size_bytes
    numbers[Office.ANSWERED] += 1
    post.peers[group[Group.PEER], Peer.ROWS_ASKED] += rows
    if numbers[Office.LOGGED] < LOG_MAX:
        entry = post.log[numbers[Office.LOGGED]]
        entry[Entry.PEER], entry[Entry.ROWS] = group[Group.PEER], rows
        entry[Entry.TOOK_NS] = clock_ns(post.scratch.ctypes.data) - group[Group.SENT_NS]
        numbers[Office.LOGGED] += 1
    if round_[Round.OPEN] == 0:
        round_[Round.STATE] = 2
        numbers[Office.FINISHED] += 1


@jit
def end(posts: Posts, at: int, requests: Ints, tally: Ints) -> None:
    """A round is over, and all of it has been answered: count it up for the requests concerned.

    Args:
        posts: The tables.
        at: The round.
        requests: For each row of the batch, whose it is: a row of ``tally``.
        tally: See `Tally`.
    """
    post = posts[0]
    round_ = post.rounds[at]
    pairs = round_[Round.PAIRS]
    for i in range(pairs):
        of = requests[post.pairs[at, i, Pair.ROW]]
        tally[of, Tally.CALLS] += 1
        tally[of, Tally.MARK] += 1
    for i in range(pairs):
        mine = tally[requests[post.pairs[at, i, Pair.ROW]]]
        share = mine[Tally.MARK]
        if share > 0:
            mine[Tally.MARK] = 0
            mine[Tally.ROUNDS] += 1
            mine[Tally.SENT_BYTES] += round_[Round.SENT_BYTES] * share // pairs
            mine[Tally.RECEIVED_BYTES] += round_[Round.RECEIVED_BYTES] * share // pairs
            mine[Tally.WAITED_NS] += round_[Round.WAITED_NS]
    round_[Round.STATE] = 0
