"""Whom a compiled round asks: `meshmoe.placement.holder_choice.choose_holders` in compiled code.

What is decided is the same, which a property test holds it to; see there, and `meshmoe.node.routes`, for the reasons.
"""

from __future__ import annotations

from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.primitives import address_at
from meshmoe.engine.rounds.tables import Cost, Office, Peer, Post
from meshmoe.placement.holder_choice import SLACK

EXPERT, FIRST, ROWS, PEER = 0, 1, 2, 3
"""Columns of `Post.wanted`."""

_FAR_S = 1e18


@jit
def peer_time_s(post: Post, peer: int, size_bytes: int) -> float:
    """Expected seconds for a peer to answer a call that moves so many bytes."""
    return float(post.costs[peer, Cost.FIXED_S] + post.costs[peer, Cost.BYTE_S] * size_bytes)


@jit
def _holders(post: Post, moe: int, expert: int) -> int:
    return address_at(post.numbers[Office.OWNERS], moe * post.numbers[Office.EXPERTS] + expert)


@jit
def holders_of(post: Post, moe: int, expert: int) -> int:
    """Bits of the peers that may be asked for an expert: the best kind of those that hold it."""
    bits = _holders(post, moe, expert)
    for lesser in (post.numbers[Office.SUSPECTED], post.numbers[Office.DISTRUSTED]):
        better = bits & ~lesser
        if better != 0:
            bits = better
    return int(bits)


@jit
def has_spare(post: Post, moe: int, expert: int) -> bool:
    """Whether somebody else could be asked for an expert, suspects aside."""
    bits = _holders(post, moe, expert)
    better = bits & ~post.numbers[Office.SUSPECTED]
    if better != 0:
        bits = better
    return bool(bits & (bits - 1) != 0)


@jit
def choose(post: Post, moe: int, count: int, row_bytes: int) -> bool:
    """Fill in the peers of the first ``count`` entries of ``post.wanted``, which are in the order of experts.

    Returns:
        Whether all have one.
    """
    wanted = post.wanted
    common, every, first, same, rows = -1, 0, 0, True, 0
    for i in range(count):
        bits = holders_of(post, moe, wanted[i, EXPERT])
        if bits == 0:
            return False
        if i == 0:
            first = bits
        same = same and bits == first
        common &= bits
        every |= bits
        rows += wanted[i, ROWS]
    peers = post.numbers[Office.PEERS]
    if common != 0:
        nearest = _nearest(post, common, 0)
        bit = 1 << nearest
        alone = False  # whether some expert has nobody else
        for i in range(count):
            alone = alone or holders_of(post, moe, wanted[i, EXPERT]) == bit
        least_s = peer_time_s(post, nearest, row_bytes)
        if (same and first == bit) or (alone and peer_time_s(post, nearest, rows * row_bytes) <= SLACK * least_s):
            for i in range(count):
                wanted[i, PEER] = nearest
            return True
    if count == 1:
        wanted[0, PEER] = _nearest(post, first, wanted[0, ROWS] * row_bytes)
        return True
    bound_s = 0.0
    for i in range(count):
        bits, size_bytes = holders_of(post, moe, wanted[i, EXPERT]), wanted[i, ROWS] * row_bytes
        bound_s = max(bound_s, peer_time_s(post, _nearest(post, bits, size_bytes), size_bytes))
        wanted[i, PEER] = -1
    bound_s *= SLACK
    load, within = post.loads[0], post.loads[1]
    for peer in range(peers):
        load[peer] = 0
    left = count
    while left > 0:
        best, next_at = -1, -1
        for peer in range(peers):
            within[peer] = 0
        for i in range(count):
            if wanted[i, PEER] < 0:
                if next_at < 0:
                    next_at = i
                bits = holders_of(post, moe, wanted[i, EXPERT])
                for peer in range(peers):
                    if bits >> peer & 1 and _ends_s(post, load[peer] + wanted[i, ROWS], peer, row_bytes) <= bound_s:
                        within[peer] += 1
        for peer in range(peers):
            if within[peer] > 0 and (best < 0 or _goes_before(post, peer, best, row_bytes)):
                best = peer
        if best >= 0:
            for i in range(count):
                if wanted[i, PEER] < 0 and holders_of(post, moe, wanted[i, EXPERT]) >> best & 1:
                    total = load[best] + wanted[i, ROWS]
                    if _ends_s(post, total, best, row_bytes) <= bound_s:
                        wanted[i, PEER] = best
                        load[best] = total
                        left -= 1
        else:  # every fast holder has its fill: the next expert goes where it ends first
            bits, soonest_s = holders_of(post, moe, wanted[next_at, EXPERT]), _FAR_S
            for peer in range(peers):
                if bits >> peer & 1:
                    ends_s = _ends_s(post, load[peer] + wanted[next_at, ROWS], peer, row_bytes)
                    if ends_s < soonest_s or (ends_s == soonest_s and _rank(post, peer) < _rank(post, best)):
                        best, soonest_s = peer, ends_s
            wanted[next_at, PEER] = best
            load[best] += wanted[next_at, ROWS]
            left -= 1
    return True


@jit
def _goes_before(post: Post, peer: int, other: int, row_bytes: int) -> bool:
    """Of two peers: which is given what it can take first."""
    load, within = post.loads[0], post.loads[1]
    if within[peer] != within[other]:
        return bool(within[peer] > within[other])
    mine_s, its_s = _ends_s(post, load[peer], peer, row_bytes), _ends_s(post, load[other], other, row_bytes)
    return bool(mine_s < its_s or (mine_s == its_s and _rank(post, peer) < _rank(post, other)))


@jit
def _ends_s(post: Post, rows: int, peer: int, row_bytes: int) -> float:
    return peer_time_s(post, peer, rows * row_bytes)


@jit
def _rank(post: Post, peer: int) -> int:
    return int(post.peers[peer, Peer.RANK])


@jit
def _nearest(post: Post, bits: int, size_bytes: int) -> int:
    """Of the peers that ``bits`` stand for, who answers so many bytes first."""
    best, best_s = -1, _FAR_S
    for peer in range(post.numbers[Office.PEERS]):
        if bits >> peer & 1:
            time_s = peer_time_s(post, peer, size_bytes)
            if time_s < best_s or (time_s == best_s and _rank(post, peer) < _rank(post, best)):
                best, best_s = peer, time_s
    return best
