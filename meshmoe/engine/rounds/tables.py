"""The tables of compiled rounds: who is asked, what is under way, and what has come.

One `Post` a compute thread. Python fills in what changes slowly (`meshmoe.node.express_rounds`: peers, who holds what,
who sends under which name); compiled code reads that, and writes what happens. All of it belongs to the compute thread,
so there is no lock but those of the outgoing connections (`meshmoe.transport.native_tables.Port`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from meshmoe.engine.lean.attention import Ints

Bytes = NDArray[np.uint8]
Doubles = NDArray[np.float64]

PEERS_MAX = 62
"""Each has a bit of an int64."""

SENDERS_MAX = 128
ROUNDS_MAX = 8
GROUPS_MAX = 8
"""Messages of a round: one to each peer that is asked."""

PAIRS_MAX = 256
"""Of a round: a row's use of an expert."""

KEPT_MAX = 64
"""Messages on emulated links."""

LOG_MAX = 1024
NAME_BYTES_MAX = 128
KEY_BYTES_MAX = 64


class Office(IntEnum):
    """Entries of `Post.numbers`: int64."""

    OPEN = 0
    """Whether compiled rounds can be made now."""
    RECV = 1
    """Addresses of libzmq's functions, as `meshmoe.transport.native.Functions` has them."""
    CLOSE = 2
    DATA = 3
    SIZE = 4
    MORE = 5
    GETS = 6
    SEND = 7
    SOCKET = 8
    """That receives."""
    DESCRIPTOR = 9
    """Readable when it may have something, once it has had nothing."""
    WAKE = 10
    """Readable when another thread wants this one."""
    EMPTY = 11
    """Whether the socket has had nothing."""
    MESSAGES = 12
    """Address of two ``zmq_msg_t``: name of the connection, content."""
    CALL_HEADER = 13
    """Address of the header of a call as a slip; then how long it is; then the same of a reply."""
    CALL_HEADER_BYTES = 14
    REPLY_HEADER = 15
    REPLY_HEADER_BYTES = 16
    USER_ID = 17
    """Address of the name of the property that tells a connection's key, 0 where there are no keys."""
    OUT = 18
    """Address of room for a message, and how much there is."""
    OUT_BYTES = 19
    KEPT_AT = 20
    """Address of room for those on emulated links, ``OUT_BYTES`` each."""
    X = 21
    """Of `lean.little`: input, output, room to work."""
    Y = 22
    SCRATCH = 23
    DTYPE = 24
    """Its number in a slip."""
    HIDDEN = 25
    NEXT_ID = 26
    PEERS = 27
    """How many there are."""
    SENDERS = 28
    SUSPECTED = 29
    """Bits of peers that are asked only where there is nobody else."""
    DISTRUSTED = 30
    """The same, after those."""
    ATTEMPT_NS = 31
    """For how long an answer is waited for."""
    KEPT = 32
    """How many messages are on emulated links."""
    EARLY_NS = 33
    """How long before one is due the thread has itself woken (`meshmoe.transport.impaired_direct`)."""
    CHANCE = 34
    """State of the emulated links' random numbers."""
    SPARE = 35
    """Whether this box has cores to spare, so that the thread may wait awake."""
    AWAKE_UNTIL_NS = 36
    SERVED_NS = 37
    """When the last call was served."""
    LOGGED = 38
    """Entries of the log."""
    FINISHED = 39
    """Rounds that have come to their end, ever."""
    SENT = 40
    """Calls that went out, were answered, were served; and rows of the last."""
    ANSWERED = 41
    SERVED = 42
    ROWS_SERVED = 43
    MAY_WAIT = 44
    """Whether a step may wait for its round: nothing else is to be done."""
    DROPPED = 45
    """Messages that could not go on from an emulated link."""
    WAITED_NS = 47
    """For how long steps have had nothing to do but wait for their rounds, ever."""
    DUE_NS = 48
    """When the interpreter has to come back to what it keeps on emulated links; 0 for never."""
    OWNERS = 49
    """Addresses of `Post.owners` and `Post.limits`, and how many layers and experts a layer they have."""
    LIMITS = 50
    LAYERS = 51
    EXPERTS = 52
    LEFT = 46
    """Whether a message for others stands in ``MESSAGES``: how `attending.attend` calls its kind."""


class Peer(IntEnum):
    """Columns of `Post.peers`: int64."""

    PORT = 0
    """Address of its `Port`; 0 for none."""
    RANK = 1
    """In the order of names."""
    DEADLINE_NS = 2
    """For how long it is waited for where somebody else could be asked."""
    USUAL_NS = 3
    """When most of its answers have come; 0 where that is not known."""
    RECEIVED_PARCELS = 4
    RECEIVED_BYTES = 5
    ROWS_ASKED = 6


class Cost(IntEnum):
    """Columns of `Post.costs`: float64 seconds, of an empty call and of a byte."""

    FIXED_S = 0
    BYTE_S = 1


class Sender(IntEnum):
    """Columns of `Post.senders`: int64."""

    NAME_BYTES = 0
    KEY_BYTES = 1
    PEER = 2
    """Row of `Post.peers`; -1 for who is not listened to here."""


class Round(IntEnum):
    """Columns of `Post.rounds`: int64."""

    STATE = 0
    """0 for none, 1 for one under way, 2 for one whose messages are all answered or given up."""
    LAYER = 1
    """MoE layer ordinal."""
    GROUPS = 2
    OPEN = 3
    """Groups that are not answered."""
    FAILED = 4
    """Groups that never will be."""
    PAIRS = 5
    OUTPUTS = 6
    """Address of the batch's outputs, and experts of a row."""
    TOP_K = 7
    WAITED_NS = 8
    """For how long there was nothing to do but wait for it."""
    SENT_BYTES = 9
    RECEIVED_BYTES = 10


class Group(IntEnum):
    """Columns of `Post.groups`: int64."""

    STATE = 0
    """1 while it is not answered, 2 when it is, 3 when it will not be."""
    ID = 1
    PEER = 2
    SENT_NS = 3
    DEADLINE_NS = 4
    PAIRS = 5


class Pair(IntEnum):
    """Columns of `Post.pairs`: int64."""

    EXPERT = 0
    ROW = 1
    PLACE = 2
    """Of the expert among those of the row."""
    GROUP = 3


class Kept(IntEnum):
    """Columns of `Post.kept`: int64."""

    DUE_NS = 0
    """0 where there is none."""
    PORT = 1
    LIFE = 2
    SIZE_BYTES = 3


class Entry(IntEnum):
    """Columns of `Post.log`: int64. One for each answer."""

    PEER = 0
    TOOK_NS = 1
    ROWS = 2


class Limit(IntEnum):
    """Columns of `Post.limits`: int64. Of the little calls of a MoE layer."""

    WIDTH = 0
    EXPERTS = 1
    ROWS = 2


class Tally(IntEnum):
    """Columns of a batch's tally, int64, a row a request."""

    CALLS = 0
    """Expert calls that the mesh made."""
    ROUNDS = 1
    SENT_BYTES = 2
    RECEIVED_BYTES = 3
    WAITED_NS = 4
    MARK = 5
    """To work with."""


Posts: TypeAlias = Any
"""One `Post`, as compiled code gets it: ``posts[0]`` is ``post``."""


class Post(NamedTuple):
    """All tables.

    Compiled code gets them in one piece, as ``whole``: what is said of ``post`` there is true of that. Seventeen arrays
    as arguments of every function took the compiler a fifth of all its time. ``owners`` and ``limits``, whose size
    depends on the model, stand in ``whole.numbers`` as addresses.
    """

    numbers: Ints
    """See `Office`."""
    peers: Ints
    """``[PEERS_MAX, ...]``; see `Peer`."""
    costs: Doubles
    """``[PEERS_MAX, ...]``; see `Cost`."""
    owners: Ints
    """``[MoE layers, experts]``: bits of the peers that hold an expert."""
    senders: Ints
    """``[SENDERS_MAX, ...]``; see `Sender`."""
    names: Bytes
    """``[SENDERS_MAX, NAME_BYTES_MAX]``, of connections."""
    keys: Bytes
    """``[SENDERS_MAX, KEY_BYTES_MAX]``"""
    rounds: Ints
    """``[ROUNDS_MAX, ...]``; see `Round`."""
    groups: Ints
    """``[ROUNDS_MAX, GROUPS_MAX, ...]``; see `Group`."""
    pairs: Ints
    """``[ROUNDS_MAX, PAIRS_MAX, ...]``; see `Pair`. By expert, then row."""
    kept: Ints
    """``[KEPT_MAX, ...]``; see `Kept`."""
    log: Ints
    """``[LOG_MAX, ...]``; see `Entry`."""
    limits: Ints
    """``[MoE layers, ...]``; see `Limit`."""
    asked: Ints
    """Room for what a peer asks, as `lean.little.serve_rows` wants it."""
    wanted: Ints
    """``[PAIRS_MAX, 4]``, to work with: expert, first pair, pairs, peer."""
    loads: Ints
    """``[2, PEERS_MAX]``, to work with."""
    positions: Ints
    """``[rows]``, to work with."""
    scratch: Ints
    """To work with: what ``ppoll`` and the clock want."""
    whole: Posts
    """``[1]``: a NumPy record with all of the above but ``owners`` and ``limits``. What the interpreter calls takes the
    array, since numba takes 10 us for a record that comes from there."""
