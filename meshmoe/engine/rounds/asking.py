"""A round begins: which experts a layer lacks, whom to ask for them, and the messages that do."""

from __future__ import annotations

from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.primitives import Tag, int64, size_of
from meshmoe.engine.lean.attention import Ints
from meshmoe.engine.lean.tables import Layer, Place, Shape, Token
from meshmoe.engine.rounds.choosing import EXPERT, FIRST, PEER, ROWS, choose, has_spare, peer_time_s
from meshmoe.engine.rounds.memory import clock_ns, copy, put_byte, put_int32
from meshmoe.engine.rounds.sending import send
from meshmoe.engine.rounds.tables import GROUPS_MAX, PAIRS_MAX, Group, Office, Pair, Peer, Post, Round
from meshmoe.wire.slips import CALL_NUMBERS

PREFIX_BYTES = 9
"""Of a parcel of three frames (`meshmoe.transport.envelope`)."""

ROWS_MAX = 64
"""Of a batch whose rounds are compiled."""

_ID_MASK = 0x7FFFFFFC
"""Ids are multiples of four, which nobody else's are."""


@jit
def ask(
    tag: Tag,
    shape: Ints,
    layer: Ints,
    places: Ints,
    experts: Ints,
    rows: Ints,
    chosen: Ints,
    post: Post,
    at: int,
) -> bool:
    """Ask the mesh for what a layer lacks, for all rows at once.

    Args:
        tag: As in `lean.step.run`, like the next three.
        shape: See there.
        layer: See there.
        places: See there.
        experts: ``[experts, 2]``: addresses of what is resident.
        rows: See there.
        chosen: ``[rows, k]``: the experts of each row.
        post: The tables.
        at: The batch's row of ``post.rounds``; -1 if it has none.

    Returns:
        Whether the round is under way; False, with nothing done, where it is none for compiled code.
    """
    count, top_k = len(rows), layer[Layer.TOP_K]
    if at < 0 or post.numbers[Office.OPEN] == 0 or count > ROWS_MAX or post.rounds[at, Round.STATE] != 0:
        return False
    pairs = post.pairs[at]
    found = _missing(experts, rows, chosen, top_k, pairs)
    if found <= 0:
        return False
    row_bytes = shape[Shape.HIDDEN] * size_of(tag)
    wanted, distinct = post.wanted, 0
    for i in range(found):
        if i == 0 or pairs[i, Pair.EXPERT] != pairs[i - 1, Pair.EXPERT]:
            wanted[distinct, EXPERT], wanted[distinct, FIRST] = pairs[i, Pair.EXPERT], i
            wanted[distinct, ROWS] = 0
            distinct += 1
        wanted[distinct - 1, ROWS] += 1
    moe = layer[Layer.MOE]
    if not choose(post, moe, distinct, 2 * row_bytes):
        return False
    round_ = post.rounds[at]
    round_[Round.LAYER], round_[Round.GROUPS], round_[Round.OPEN], round_[Round.FAILED] = moe, 0, 0, 0
    round_[Round.PAIRS], round_[Round.OUTPUTS], round_[Round.TOP_K] = found, places[Place.OUTPUTS], top_k
    round_[Round.WAITED_NS], round_[Round.SENT_BYTES], round_[Round.RECEIVED_BYTES] = 0, 0, 0
    if not _group(post, at, distinct):
        return False
    now_ns = clock_ns(post.scratch.ctypes.data)
    budget_ns = _budget_ns(post, moe, at, distinct, 2 * row_bytes)
    for g in range(round_[Round.GROUPS]):
        group = post.groups[at, g]
        size_bytes = _write_call(post, at, g, distinct, count, places[Place.NORMED], row_bytes, budget_ns)
        if size_bytes > 0 and send(post, post.peers[group[Group.PEER], Peer.PORT], size_bytes):
            group[Group.STATE], group[Group.SENT_NS], group[Group.DEADLINE_NS] = 1, now_ns, now_ns + budget_ns
            round_[Round.OPEN] += 1
            round_[Round.SENT_BYTES] += size_bytes
            post.numbers[Office.SENT] += 1
            usual_ns = post.peers[group[Group.PEER], Peer.USUAL_NS]
            if usual_ns > 0:
                until_ns = max(post.numbers[Office.AWAKE_UNTIL_NS], now_ns + usual_ns)
                post.numbers[Office.AWAKE_UNTIL_NS] = until_ns
        else:
            group[Group.STATE] = 3
            round_[Round.FAILED] += 1
    if round_[Round.OPEN] == 0:
        return False
    round_[Round.STATE] = 1
    return True


@jit
def _missing(experts: Ints, rows: Ints, chosen: Ints, top_k: int, pairs: Ints) -> int:
    """Fill in what is chosen and not resident, by expert, then row; returns how many, -1 if that is not for us."""
    found, decode = 0, False
    for r in range(len(rows)):
        for i in range(top_k):
            expert = chosen[r, i]
            if expert >= 0 and experts[expert, 0] == 0:
                if found == PAIRS_MAX:
                    return -1
                decode = decode or rows[r, Token.COUNTS] == 0
                at = found
                while at > 0 and pairs[at - 1, Pair.EXPERT] > expert:
                    for column in range(pairs.shape[1]):  # assigning rows takes seconds of compiling
                        pairs[at, column] = pairs[at - 1, column]
                    at -= 1
                pairs[at, Pair.EXPERT], pairs[at, Pair.ROW], pairs[at, Pair.PLACE] = expert, r, i
                found += 1
    return found if decode else -1


@jit
def _group(post: Post, at: int, distinct: int) -> bool:
    """Put pairs that go to one peer into one group."""
    round_, wanted, pairs = post.rounds[at], post.wanted, post.pairs[at]
    for i in range(distinct):
        g = 0
        while g < round_[Round.GROUPS] and post.groups[at, g, Group.PEER] != wanted[i, PEER]:
            g += 1
        if g == round_[Round.GROUPS]:
            if g == GROUPS_MAX:
                return False
            round_[Round.GROUPS] += 1
            group = post.groups[at, g]
            group[Group.STATE], group[Group.PEER], group[Group.PAIRS] = 0, wanted[i, PEER], 0
            group[Group.ID] = post.numbers[Office.NEXT_ID]
            post.numbers[Office.NEXT_ID] = (post.numbers[Office.NEXT_ID] + 4) & _ID_MASK
        post.groups[at, g, Group.PAIRS] += wanted[i, ROWS]
        for n in range(wanted[i, ROWS]):
            pairs[wanted[i, FIRST] + n, Pair.GROUP] = g
    return True


@jit
def _budget_ns(post: Post, moe: int, at: int, distinct: int, row_bytes: int) -> int:
    """For how long the answers are waited for, as `meshmoe.node.express_client` has it."""
    spare, budget_ns = True, int64(0)
    for i in range(distinct):
        spare = spare and has_spare(post, moe, post.wanted[i, EXPERT])
    longest_ns = int64(post.numbers[Office.ATTEMPT_NS])
    for g in range(post.rounds[at, Round.GROUPS]):
        peer = post.groups[at, g, Group.PEER]
        budget_ns = max(budget_ns, int64(post.peers[peer, Peer.DEADLINE_NS]) if spare else longest_ns)
    for g in range(post.rounds[at, Round.GROUPS]):
        peer, pairs = post.groups[at, g, Group.PEER], post.groups[at, g, Group.PAIRS]
        budget_ns = max(budget_ns, int(4e9 * peer_time_s(post, peer, pairs * row_bytes)))
    return budget_ns


@jit
def _write_call(
    post: Post, at: int, g: int, distinct: int, rows: int, normed: int, row_bytes: int, budget_ns: int
) -> int:
    """Write the message of a group into the room for messages; returns its bytes, 0 if it has no room."""
    numbers, wanted, pairs, positions = post.numbers, post.wanted, post.pairs[at], post.positions
    out, header_bytes = numbers[Office.OUT], numbers[Office.CALL_HEADER_BYTES]
    for r in range(rows):
        positions[r] = -1
    asked, used = 0, 0
    for i in range(distinct):
        if pairs[wanted[i, FIRST], Pair.GROUP] == g:
            asked += 1
            for n in range(wanted[i, ROWS]):
                positions[pairs[wanted[i, FIRST] + n, Pair.ROW]] = 0
    for r in range(rows):
        if positions[r] == 0:
            positions[r] = used
            used += 1
    slip = out + PREFIX_BYTES + header_bytes
    most_bytes = 4 * (CALL_NUMBERS + 2 * asked + post.groups[at, g, Group.PAIRS])
    if PREFIX_BYTES + header_bytes + most_bytes + used * row_bytes > numbers[Office.OUT_BYTES]:
        return 0
    put_int32(slip, post.groups[at, g, Group.ID])
    put_int32(slip + 4, post.rounds[at, Round.LAYER])
    put_int32(slip + 8, min(int64(600_000), max(int64(1), budget_ns // 1_000_000)))
    put_int32(slip + 12, numbers[Office.DTYPE])
    put_int32(slip + 16, used)
    put_int32(slip + 20, numbers[Office.HIDDEN])
    put_int32(slip + 24, asked)
    end = slip + 4 * CALL_NUMBERS
    for i in range(distinct):
        if pairs[wanted[i, FIRST], Pair.GROUP] == g:
            count = wanted[i, ROWS]
            put_int32(end, wanted[i, EXPERT])
            put_int32(end + 4, 0 if count == used else count)  # none are all of them
            end += 8
            if count != used:
                for n in range(count):
                    put_int32(end, positions[pairs[wanted[i, FIRST] + n, Pair.ROW]])
                    end += 4
    put_byte(out, 3)
    put_int32(out + 1, header_bytes)
    put_int32(out + 5, end - slip)
    copy(out + PREFIX_BYTES, numbers[Office.CALL_HEADER], header_bytes)
    for r in range(rows):
        if positions[r] >= 0:
            copy(end, normed + r * row_bytes, row_bytes)
            end += row_bytes
    return int(end - out)
