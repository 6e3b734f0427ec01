"""Does with libzmq what compiled code does: calls its functions by address, through ctypes."""

from __future__ import annotations

import ctypes
import select
import time
from contextlib import contextmanager

import zmq

from meshmoe.transport.envelope import seal
from meshmoe.transport.link_model import ALONE_WAIT_S_MAX
from meshmoe.transport.native import MESSAGE_BYTES, functions
from meshmoe.transport.native_tables import LINK_WORDS, PORT_WORDS, Link, Port

_C = ctypes.c_void_p
_KINDS = {
    "zmq_msg_init": (ctypes.c_int, _C),
    "zmq_msg_recv": (ctypes.c_int, _C, _C, ctypes.c_int),
    "zmq_msg_close": (ctypes.c_int, _C),
    "zmq_msg_data": (_C, _C),
    "zmq_msg_size": (ctypes.c_size_t, _C),
    "zmq_msg_more": (ctypes.c_int, _C),
    "zmq_msg_gets": (ctypes.c_char_p, _C, ctypes.c_char_p),
    "zmq_msg_move": (ctypes.c_int, _C, _C),
    "zmq_send": (ctypes.c_int, _C, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int),
    "zmq_errno": (ctypes.c_int,),
}


def libzmq():
    """libzmq's functions under their own names; called without the interpreter's lock."""
    return type(
        "Libzmq",
        (),
        {
            name: staticmethod(ctypes.CFUNCTYPE(*_KINDS[name])(address))
            for name, address in functions()._asdict().items()
        },
    )


def words_at(address, count=PORT_WORDS):
    return (ctypes.c_int64 * count).from_address(address)


@contextmanager
def mutex_held(address):
    libc = ctypes.CDLL(None)
    assert libc.pthread_mutex_lock(_C(address)) == 0
    try:
        yield
    finally:
        assert libc.pthread_mutex_unlock(_C(address)) == 0


def send(port, frames):
    """Send by a connection's table; whether that was possible."""
    words, content = words_at(port), seal(frames)
    with mutex_held(port + 8 * Port.MUTEX):
        if not words[Port.OPEN]:
            return False
        taken = libzmq().zmq_send(words[Port.SOCKET], content, len(content), zmq.NOBLOCK) == len(content)
    if taken:
        words[Port.SENT_PARCELS] += 1
        words[Port.SENT_BYTES] += len(content)
    return taken


def pass_alone(link, size_bytes, now_s, chance=0.0):
    """Let a parcel onto an emulated link by its table; returns when it arrives, None if it has to queue."""
    words, reals = words_at(link, LINK_WORDS), (ctypes.c_double * LINK_WORDS).from_address(link)
    begins_s = max(now_s, reals[Link.SETTLED_S])
    if not words[Link.OPEN] or begins_s - now_s > ALONE_WAIT_S_MAX:
        return None
    reals[Link.SETTLED_S] = begins_s + size_bytes / reals[Link.RATE]
    arrival_s = reals[Link.SETTLED_S] + reals[Link.DELAY_S] + chance * reals[Link.JITTER_S]
    reals[Link.LAST_S] = max(reals[Link.LAST_S], arrival_s)
    return reals[Link.LAST_S]


class Receiver:
    """The compiled end of a lane; `messages` is what `DirectLane.parcel` takes over."""

    def __init__(self, lane):
        self._lane = lane
        self._native = lane.native()
        self._calls = libzmq()
        self._memory = (ctypes.c_char * (2 * MESSAGE_BYTES))()
        self.messages = ctypes.addressof(self._memory)

    def look(self):
        """Receive a message into `messages` if there is one; returns whether, and whether it has two frames."""
        calls = self._calls
        for at in (self.messages, self.messages + MESSAGE_BYTES):
            assert calls.zmq_msg_init(at) == 0
            if calls.zmq_msg_recv(at, self._native.socket, zmq.NOBLOCK) < 0:
                assert calls.zmq_errno() == zmq.EAGAIN
                calls.zmq_msg_close(at)
                return False, False
        plain = True
        surplus = ctypes.addressof(spare := (ctypes.c_char * MESSAGE_BYTES)())
        more = calls.zmq_msg_more(self.messages + MESSAGE_BYTES)
        while more:
            plain = False
            calls.zmq_msg_init(surplus)
            assert calls.zmq_msg_recv(surplus, self._native.socket, zmq.NOBLOCK) >= 0
            more = calls.zmq_msg_more(surplus)
            calls.zmq_msg_close(surplus)
        del spare
        return True, plain

    def receive(self, timeout_s=10.0):
        """The next parcel as `Arrived`; None if `wake` was called, the lane was closed, or what came was none."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            if not self._lane.enter():
                return None
            try:
                found, plain = self.look()
                if not found:
                    readable, _, _ = select.select([self._native.descriptor, self._native.wake_descriptor], [], [], 0.5)
                    if self._native.wake_descriptor in readable:
                        return None
            finally:
                self._lane.leave()
            self._lane.drained(not found)
            if found:
                return self._lane.parcel(self.messages) if plain else self._lane.refuse(self.messages)
        raise AssertionError("nothing came")

    def receive_wake(self, timeout_s=10.0):
        """Whether `wake` was called in that time."""
        return bool(select.select([self._native.wake_descriptor], [], [], timeout_s)[0])

    def user_id(self):
        """Of the message that `look` has received."""
        return self._calls.zmq_msg_gets(self.messages + MESSAGE_BYTES, b"User-Id") or b""
