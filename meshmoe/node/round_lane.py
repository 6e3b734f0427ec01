"""The data lane in the hands of compiled code: how it gets there, and what is left when it comes back.

Compiled code receives into two messages of libzmq's, and leaves there what is not plain. Here that becomes a parcel, by
the checks of the transport, and the two are made ready for what comes next.
"""

from __future__ import annotations

import ctypes
from time import perf_counter

from meshmoe.engine.kernels.limit import SliceLimit
from meshmoe.engine.lean.resident import ResidentTable
from meshmoe.engine.rounds.attending import FOREIGN, MESSAGE_BYTES
from meshmoe.engine.rounds.post import PostOffice
from meshmoe.engine.rounds.tables import Office
from meshmoe.transport.base import Arrived, DirectLane
from meshmoe.transport.native import NativeLane
from meshmoe.wire.codec import Codec
from meshmoe.wire.messages import ExpertCall, ExpertReply

FRESH_S = 0.25
"""How old what compiled code is told of peers may be."""


class RoundLane:
    """See the module; belongs to the compute thread."""

    def __init__(self, lane: DirectLane, native: NativeLane, office: PostOffice, resident: ResidentTable) -> None:
        """Open an office.

        Args:
            lane: The data lane.
            native: Of the lane.
            office: Where compiled rounds are made.
            resident: Of the engine.
        """
        self._lane = lane
        self._office = office
        self._resident = resident
        self._init = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(native.functions.zmq_msg_init)
        self._begin(native)

    def _begin(self, native: NativeLane) -> None:
        numbers, functions = self._office.post.numbers, native.functions
        numbers[Office.RECV], numbers[Office.CLOSE] = functions.zmq_msg_recv, functions.zmq_msg_close
        numbers[Office.DATA], numbers[Office.SIZE] = functions.zmq_msg_data, functions.zmq_msg_size
        numbers[Office.MORE], numbers[Office.GETS] = functions.zmq_msg_more, functions.zmq_msg_gets
        numbers[Office.SEND], numbers[Office.SOCKET] = functions.zmq_send, native.socket
        numbers[Office.DESCRIPTOR], numbers[Office.WAKE] = native.descriptor, native.wake_descriptor
        numbers[Office.EMPTY] = 0
        self._ready_messages()
        codec = Codec((ExpertCall, ExpertReply))
        self._office.open_lane(codec.slip_header("call"), codec.slip_header("reply"), b"User-Id")

    def _ready_messages(self) -> None:
        messages = int(self._office.post.numbers[Office.MESSAGES])
        self._init(messages)
        self._init(messages + MESSAGE_BYTES)

    @property
    def drained(self) -> bool:
        """Whether nothing is left to be received, or to be sent on."""
        numbers = self._office.post.numbers
        return bool(numbers[Office.EMPTY]) and not numbers[Office.LEFT] and not numbers[Office.KEPT]

    def enter(self) -> bool:
        """See `Inlet.enter`."""
        due_s = self._lane.due_s()
        due_ns = int((perf_counter() + due_s) * 1e9) if due_s < FRESH_S else 0
        self._office.post.numbers[Office.DUE_NS] = due_ns
        return self._lane.enter()

    def attend(self, limit: SliceLimit | None, until_ns: int) -> int | None:
        """Serve and take in what is plain; returns why that has ended, None if the lane is closed.

        Args:
            limit: Of the slice, if another thread may cut it.
            until_ns: See `attending.attend`.
        """
        if not self.enter():
            return None
        try:
            snapshot = self._resident.snapshot()
            return self._office.attend(snapshot.addresses, 0 if limit is None else limit.address, until_ns)
        finally:
            self._lane.leave()
            self._lane.drained(bool(self._office.post.numbers[Office.EMPTY]))

    def take_left(self) -> Arrived | None:
        """What compiled code has left, if that is a parcel."""
        numbers = self._office.post.numbers
        kind, numbers[Office.LEFT] = int(numbers[Office.LEFT]), 0
        if not kind:
            return None
        messages = int(numbers[Office.MESSAGES])
        try:
            if kind != FOREIGN:
                self._lane.refuse(messages)
                return None
            return self._lane.parcel(messages)
        finally:
            self._ready_messages()
