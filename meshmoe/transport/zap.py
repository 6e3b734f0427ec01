"""Who may connect: a handler of ZeroMQ's authentication protocol (ZAP, RFC 27) as a trio task.

libzmq asks it at every CURVE handshake of the transport's listening sockets, through ``inproc://zeromq.zap.01``;
pyzmq's own handlers know threads and asyncio only. The answer for a key is one of:

- admitted: yes, on every lane;
- not admitted: on the control lane yes, as a *guest*, who may introduce itself and nothing more, and only so many a
  second from one address and in all; on the other lanes no;
- banned: no.

"No" is ZAP's 300, which closes the connection without a word: the other end tries again, as it should when news of its
admission have not come round yet. The key goes along with every message of the connection as its user id, and the
receiving lane looks the key up again for every parcel (see `meshmoe.transport.zmq_inbound`).
"""

from __future__ import annotations

import logging
from collections import OrderedDict

import trio
import zmq

from meshmoe.core.endpoints import Lane
from meshmoe.transport.complaints import Complaints
from meshmoe.transport.keyring import KEY_BYTES, Keyring
from meshmoe.transport.zmq_socket import ZmqSocket

_ADDRESS = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_logger = logging.getLogger(__name__)


class TokenBucket:
    """So many at once, then so many a second."""

    def __init__(self, burst: float, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._level = burst
        self._then_s = float("-inf")

    def take(self, now_s: float) -> bool:
        """Whether one more is all right now."""
        if self._then_s != float("-inf"):
            self._level = min(self._burst, self._level + (now_s - self._then_s) * self._per_s)
        self._then_s = now_s
        if self._level < 1:
            return False
        self._level -= 1
        return True


class GuestBook:
    """Limits how often somebody who is not admitted may do something, for each of them and in all."""

    def __init__(self, burst: float, per_s: float, *, guests_max: int = 1024) -> None:
        """Make one.

        Args:
            burst: So often at once for one guest; all together four times that.
            per_s: So often a second for one; all together eight times that.
            guests_max: How many are told apart; the one heard longest ago is forgotten first.
        """
        self._burst, self._per_s = burst, per_s
        self._all = TokenBucket(4 * burst, 8 * per_s)
        self._guests_max = guests_max
        self._by_guest: OrderedDict[bytes, TokenBucket] = OrderedDict()

    def admits(self, guest: bytes, now_s: float) -> bool:
        """Whether once more is all right now."""
        bucket = self._by_guest.pop(guest, None) or TokenBucket(self._burst, self._per_s)
        self._by_guest[guest] = bucket
        if len(self._by_guest) > self._guests_max:
            self._by_guest.popitem(last=False)
        return bucket.take(now_s) and self._all.take(now_s)


class ZapHandler:
    """Answers libzmq's questions; `run` it for as long as the sockets live."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keyring: Keyring) -> None:
        """Start listening; must come before the first socket with a ZAP domain is bound."""
        raw = context.socket(zmq.ROUTER)
        raw.set(zmq.LINGER, 0)
        raw.bind(_ADDRESS)
        self._socket = ZmqSocket(raw)
        self._keyring = keyring
        self._guests = GuestBook(burst=16, per_s=2)
        self._complaints = Complaints(_logger)

    @property
    def refused(self) -> int:
        """Handshakes answered with no."""
        return self._complaints.count

    async def run(self) -> None:
        """Answer until closed."""
        try:
            while True:
                frames = [frame.bytes for frame in await self._socket.recv()]
                # [libzmq's end, empty, version, request, domain, address, routing id, mechanism, credentials ...]
                if len(frames) < 8 or frames[2] != _VERSION:
                    continue
                status, user = self._decide(frames)
                self._socket.send_nowait([frames[0], b"", _VERSION, frames[3], status, b"", user, b""])
        except trio.ClosedResourceError:
            pass

    def close(self) -> None:
        """Stop answering: handshakes then wait until they are given up."""
        self._socket.close()

    def _decide(self, frames: list[bytes]) -> tuple[bytes, bytes]:
        domain, address, mechanism, key = frames[4], frames[5], frames[7], frames[-1]
        if mechanism != b"CURVE" or len(key) != KEY_BYTES:
            return self._refuse(address, "without a key")
        user, now_s = key.hex(), trio.current_time()
        if self._keyring.is_banned(user, now_s):
            return self._refuse(address, "with a key that is cut off for a while")
        if self._keyring.node_of(user) is None:
            if domain != zap_domain(Lane.CONTROL):
                self._complaints.note(f"refused a connection from {address!r}: its key is not admitted (yet)")
                return b"300", b""
            if not self._guests.admits(address, now_s):
                return self._refuse(address, "with yet another key that is not admitted")
        return b"200", user.encode()

    def _refuse(self, address: bytes, what: str) -> tuple[bytes, bytes]:
        self._complaints.complain(f"refused a connection from {address.decode(errors='replace')[:64]} {what}")
        return b"300", b""


def zap_domain(lane: Lane) -> bytes:
    """The ZAP domain of a lane's listening socket."""
    return lane.name.lower().encode()
