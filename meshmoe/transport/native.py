"""What compiled code needs in order to serve a lane by itself: libzmq's functions by address, and what goes with them.

Compiled code (`meshmoe.engine`) calls the very libzmq that pyzmq uses, on the sockets that pyzmq has opened, without
the interpreter's lock. Here is how it is found, a mutex that both sides can hold, and a message of libzmq's in the
shape that pyzmq would have given it.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from functools import cache
from types import TracebackType
from typing import NamedTuple

import zmq

MESSAGE_BYTES = 64
"""Size of libzmq's ``zmq_msg_t``."""

_PYBUF_READ = 0x100


class Functions(NamedTuple):
    """Addresses of libzmq's functions, under their own names."""

    zmq_msg_init: int
    zmq_msg_recv: int
    zmq_msg_close: int
    zmq_msg_data: int
    zmq_msg_size: int
    zmq_msg_move: int
    zmq_msg_more: int
    zmq_msg_gets: int
    zmq_send: int
    zmq_errno: int


class NativeLane(NamedTuple):
    """The receiving half of a lane.

    Attributes:
        functions: To call.
        socket: libzmq's ``void*`` of the ROUTER.
        descriptor: Tells of a change there, once for all that came since the socket was last found empty.
        wake_descriptor: Can be read when the thread is wanted; whoever finds it so reads it empty.
    """

    functions: Functions
    socket: int
    descriptor: int
    wake_descriptor: int


@cache
def functions() -> Functions | None:
    """libzmq's functions; None where they cannot be had."""
    library = _libzmq()
    if library is None:
        return None
    try:
        return Functions(*(_address(getattr(library, name)) for name in Functions._fields))
    except AttributeError:
        return None


@cache
def _libzmq() -> ctypes.PyDLL | None:
    """The libzmq of this process, called without giving up the interpreter: only what never waits is called so."""
    if sys.platform != "linux":
        return None
    try:
        # Names are looked up in what the extension was linked with, too: the libzmq that is loaded already.
        library = ctypes.PyDLL(importlib.import_module("zmq.backend.cython._zmq").__file__)
        version = (ctypes.c_int * 3)()
        library.zmq_version(*(ctypes.byref(version, at * ctypes.sizeof(ctypes.c_int)) for at in range(3)))
        for name in ("zmq_msg_data", "zmq_msg_gets"):
            getattr(library, name).restype = ctypes.c_void_p if name == "zmq_msg_data" else ctypes.c_char_p
        library.zmq_msg_size.restype = ctypes.c_size_t
    except (ImportError, OSError, AttributeError):
        return None
    return library if tuple(version) == zmq.zmq_version_info() else None


def _address(function: ctypes._FuncPointer) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


class NativeMutex:
    """A pthread mutex in memory that somebody else keeps; Linux only.

    Held by one thread at a time, as ``threading.Lock`` is, but compiled code can hold it, too.
    """

    __slots__ = ("_at", "_lock", "_try_lock", "_unlock")

    def __init__(self, address: int) -> None:
        self._at = ctypes.c_void_p(address)
        # To try and to unlock take no time; to wait gives up the interpreter, which the holder may need.
        at_once, waiting = ctypes.PyDLL(None), ctypes.CDLL(None)
        self._try_lock, self._unlock = at_once.pthread_mutex_trylock, at_once.pthread_mutex_unlock
        self._lock = waiting.pthread_mutex_lock
        problem = waiting.pthread_mutex_init(self._at, None)
        assert not problem, "a mutex of the default kind cannot fail"

    def __enter__(self) -> None:
        if self._try_lock(self._at):
            self._lock(self._at)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unlock(self._at)


class NativeFrame:
    """What `meshmoe.transport.zmq_inbound` asks of a ``zmq.Frame``, of a message that compiled code has received.

    Attributes:
        buffer: Its content, copied.
    """

    def __init__(self, message: int) -> None:
        """Take a message over.

        Args:
            message: Address of an initialised ``zmq_msg_t``; `close` leaves it empty.
        """
        library = _libzmq()
        assert library is not None
        self._library = library
        self._message = ctypes.c_void_p(message)
        self.buffer = memoryview(self._content())

    def get(self, option: int | str) -> int | str:
        """A property of the message, as ``zmq.Frame.get`` gives it.

        Raises:
            zmq.ZMQError: It has none of that name.
        """
        if isinstance(option, int):
            number: int = self._library.zmq_msg_get(self._message, option)
            if number < 0:
                raise zmq.ZMQError(zmq.Errno.EINVAL)
            return number
        text: bytes | None = self._library.zmq_msg_gets(self._message, option.encode())
        if text is None:
            raise zmq.ZMQError(zmq.Errno.EINVAL)
        return text.decode()

    def close(self) -> None:
        """Free the message; `buffer` stays."""
        close_message(self._message.value or 0)

    def _content(self) -> bytearray:
        size_bytes: int = self._library.zmq_msg_size(self._message)
        if not size_bytes:
            return bytearray()
        return bytearray(_view_of(self._library.zmq_msg_data(self._message), size_bytes, _PYBUF_READ))


def close_message(message: int) -> None:
    """Free a ``zmq_msg_t`` that compiled code has received."""
    library = _libzmq()
    assert library is not None
    library.zmq_msg_close(ctypes.c_void_p(message))


_view_of = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)(
    ("PyMemoryView_FromMemory", ctypes.pythonapi)
)
