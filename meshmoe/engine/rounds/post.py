"""The tables of a thread's compiled rounds, and the memory that they speak of.

Closed at first: no round is made before somebody has opened a lane (`meshmoe.node.express_rounds`), and on a transport
that has no lane for compiled code none ever is. All of it belongs to the compute thread.
"""

from __future__ import annotations

import ctypes

import numpy as np

from meshmoe.engine.kernels.crew import desk_here
from meshmoe.engine.lean.attention import Ints
from meshmoe.engine.lean.little import ROWS_MAX as LITTLE_ROWS_MAX
from meshmoe.engine.lean.little import LittleCalls
from meshmoe.engine.lean.plan import LeanPlan
from meshmoe.engine.lean.tables import Layer, Shape
from meshmoe.engine.rounds.answers import take_in
from meshmoe.engine.rounds.asking import PREFIX_BYTES, ROWS_MAX
from meshmoe.engine.rounds.attending import MESSAGE_BYTES, SCRATCH_NUMBERS, attend, wait
from meshmoe.engine.rounds.tables import (
    GROUPS_MAX,
    KEPT_MAX,
    KEY_BYTES_MAX,
    LOG_MAX,
    NAME_BYTES_MAX,
    PAIRS_MAX,
    PEERS_MAX,
    ROUNDS_MAX,
    SENDERS_MAX,
    Cost,
    Entry,
    Group,
    Kept,
    Limit,
    Office,
    Pair,
    Peer,
    Post,
    Round,
    Sender,
)
from meshmoe.wire.slips import DTYPES
from meshmoe.wire.tensors import code_of

_HEADER_BYTES_MAX = 64


_WHOLE = np.dtype(
    [
        ("numbers", np.int64, (len(Office),)),
        ("peers", np.int64, (PEERS_MAX, len(Peer))),
        ("costs", np.float64, (PEERS_MAX, len(Cost))),
        ("senders", np.int64, (SENDERS_MAX, len(Sender))),
        ("rounds", np.int64, (ROUNDS_MAX, len(Round))),
        ("groups", np.int64, (ROUNDS_MAX, GROUPS_MAX, len(Group))),
        ("pairs", np.int64, (ROUNDS_MAX, PAIRS_MAX, len(Pair))),
        ("kept", np.int64, (KEPT_MAX, len(Kept))),
        ("log", np.int64, (LOG_MAX, len(Entry))),
        ("asked", np.int64, (4 * LITTLE_ROWS_MAX,)),
        ("wanted", np.int64, (PAIRS_MAX, 4)),
        ("loads", np.int64, (2, PEERS_MAX)),
        ("positions", np.int64, (ROWS_MAX,)),
        ("scratch", np.int64, (SCRATCH_NUMBERS,)),
        ("names", np.uint8, (SENDERS_MAX, NAME_BYTES_MAX)),
        ("keys", np.uint8, (SENDERS_MAX, KEY_BYTES_MAX)),
    ],
    align=True,
)


def make_post(layers: int, experts: int) -> Post:
    """Tables for a model of so many MoE layers, each of so many experts; nothing stands in them."""
    records = np.zeros(1, _WHOLE)
    tables = {name: records[name][0] for name in _WHOLE.fields or ()}
    owners, limits = np.zeros((layers, experts), np.int64), np.zeros((layers, len(Limit)), np.int64)
    numbers = tables["numbers"]
    numbers[Office.EMPTY] = 1
    numbers[Office.DESCRIPTOR] = numbers[Office.WAKE] = -1
    numbers[Office.OWNERS], numbers[Office.LIMITS] = owners.ctypes.data, limits.ctypes.data
    numbers[Office.LAYERS], numbers[Office.EXPERTS] = layers, experts
    return Post(owners=owners, limits=limits, whole=records, **tables)


class PostOffice:
    """See the module.

    Attributes:
        post: The tables.
        open: Whether compiled rounds are made.
    """

    def __init__(self, plan: LeanPlan, experts_per_layer: int, little: LittleCalls) -> None:
        """Make tables for a model; nothing is open.

        Args:
            plan: The model.
            experts_per_layer: Of the MoE layer that has most.
            little: Whose working memory peers' calls are served in.
        """
        self._plan = plan
        self._free = list(range(ROUNDS_MAX))
        moe = plan.layers[plan.layers[:, Layer.MOE] >= 0]
        layers = int(moe[:, Layer.MOE].max()) + 1 if len(moe) else 1
        self.post = make_post(layers, max(1, experts_per_layer))
        for ordinal, (width, experts, rows) in little.layers.items():
            self.post.limits[ordinal] = width, experts, rows
        row_bytes = int(plan.shape[Shape.HIDDEN]) * plan.embedding.element_size()
        most = PREFIX_BYTES + _HEADER_BYTES_MAX + 4 * (8 + 3 * PAIRS_MAX) + LITTLE_ROWS_MAX * row_bytes
        out_bytes = -(-most // 64) * 64
        self._messages = ctypes.create_string_buffer(3 * MESSAGE_BYTES)
        self._out, self._kept = ctypes.create_string_buffer(out_bytes), np.zeros(0, np.uint8)
        self._headers: list[ctypes.Array[ctypes.c_char]] = []
        numbers, (x, y, scratch) = self.post.numbers, little.addresses
        numbers[Office.X], numbers[Office.Y], numbers[Office.SCRATCH] = x, y, scratch
        numbers[Office.OUT], numbers[Office.OUT_BYTES] = ctypes.addressof(self._out), out_bytes
        numbers[Office.DTYPE] = DTYPES.index(code_of(plan.embedding.dtype))
        numbers[Office.HIDDEN] = int(plan.shape[Shape.HIDDEN])
        numbers[Office.MESSAGES] = -(-ctypes.addressof(self._messages) // MESSAGE_BYTES) * MESSAGE_BYTES
        numbers[Office.CHANCE] = 0x2545F4914F6CDD1D ^ id(self)
        numbers[Office.NEXT_ID] = 4

    @property
    def open(self) -> bool:
        """Whether compiled rounds are made."""
        return bool(self.post.numbers[Office.OPEN])

    def open_lane(self, call_header: bytes, reply_header: bytes, user_id: bytes) -> None:
        """Get ready for a lane, whose own numbers the caller fills in before.

        Args:
            call_header: Of calls as slips.
            reply_header: Of replies.
            user_id: Name of the property that tells a connection's key, where there are keys.
        """
        numbers = self.post.numbers
        for at, header in ((Office.CALL_HEADER, call_header), (Office.REPLY_HEADER, reply_header)):
            assert len(header) <= _HEADER_BYTES_MAX
            numbers[at], numbers[at + 1] = self._keep(header), len(header)
        numbers[Office.USER_ID] = self._keep(user_id)
        self._kept = np.zeros(KEPT_MAX * int(numbers[Office.OUT_BYTES]), np.uint8)  # memory once it is used
        numbers[Office.KEPT_AT] = self._kept.ctypes.data
        numbers[Office.OPEN] = 1

    def _keep(self, data: bytes) -> int:
        kept = ctypes.create_string_buffer(data)
        self._headers.append(kept)
        return ctypes.addressof(kept)

    def take_round(self) -> int:
        """A round for a batch: a row of ``post.rounds``; -1 if all are taken."""
        return self._free.pop() if self._free else -1

    def give_back(self, at: int) -> None:
        """The batch is done with."""
        if at >= 0:
            self.post.rounds[at, Round.STATE] = 0
            self._free.append(at)

    def attend(self, experts: Ints, limit: int, until_ns: int) -> int:
        """See `attending.attend`; waits for no round."""
        return attend(self._plan.tag, desk_here(), self.post.whole, experts, limit, -1, until_ns)

    def take_in(self, peer: int, reply: bytes, slip_bytes: int) -> bool:
        """See `answers.take_in`.

        Args:
            peer: Who answers.
            reply: The slip and the outputs.
            slip_bytes: Of the slip.
        """
        at = ctypes.addressof(buffer := ctypes.create_string_buffer(reply, len(reply)))
        return take_in(self._plan.tag, self.post.whole[0], peer, at, slip_bytes, len(buffer) - slip_bytes)

    def wait(self, experts: Ints, limit: int, at: int, patience_ns: int) -> int:
        """See `attending.wait`."""
        return wait(self._plan.tag, desk_here(), self.post.whole, experts, limit, at, patience_ns)
