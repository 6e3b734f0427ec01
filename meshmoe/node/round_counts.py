"""What compiled code has counted, passed on to whoever counts the same where the interpreter does it.

Compiled code's counters only grow. Here is kept what each of them was the last time; what has come since is passed on.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence

import trio

from meshmoe.core.ids import NodeId
from meshmoe.engine.rounds.tables import Office, Peer, Post
from meshmoe.node.expert_client import ExpertClient
from meshmoe.node.expert_server import ExpertServer
from meshmoe.node.peer_times import PeerTimes
from meshmoe.transport.base import DirectLane
from meshmoe.transport.native_tables import PORT_WORDS, Port

_OF_PORT = 1000
"""Where counters of ports stand among those of peers."""


class RoundCounts:
    """See the module; belongs to the compute thread."""

    def __init__(
        self,
        post: Post,
        lane: DirectLane,
        usual: ExpertClient,
        server: ExpertServer,
        times: PeerTimes,
        counts: Counter[str],
    ) -> None:
        """Nothing was counted.

        Args:
            post: The tables.
            lane: The data lane; counts parcels.
            usual: The usual way of asking; counts rows, and how long answers took.
            server: The usual way of serving; counts rows.
            times: How long peers take.
            counts: See `Express.counts`.
        """
        self._post = post
        self._lane = lane
        self._usual = usual
        self._server = server
        self._times = times
        self._counts = counts
        self._clock = trio.lowlevel.current_clock()
        self._ports: dict[int, ctypes.Array[ctypes.c_int64]] = {}
        self._counted: dict[tuple[int, int], int] = {}

    def count(self, peers: Sequence[NodeId]) -> None:
        """Count what compiled code has counted.

        Args:
            peers: By row.
        """
        post, numbers = self._post, self._post.numbers
        for at, name in ((Office.SENT, "sent"), (Office.ANSWERED, "answered"), (Office.SERVED, "served")):
            self._counts[name] += self._more(-1, at, int(numbers[at]))
        self._counts["rounds"] += self._more(-1, Office.FINISHED, int(numbers[Office.FINISHED]))
        self._server.rows_served += self._more(-1, Office.ROWS_SERVED, int(numbers[Office.ROWS_SERVED]))
        now_s = self._clock.current_time()
        for slot, took_ns, _ in post.log[: int(numbers[Office.LOGGED])].tolist():
            self._times.answered(peers[slot], took_ns / 1e9)
            self._usual.latency.note(took_ns / 1e9, now_s)
        numbers[Office.LOGGED] = 0
        for slot, peer in enumerate(peers):
            row = post.peers[slot].tolist()
            self._usual.calls_by_peer[peer] += self._more(slot, Peer.ROWS_ASKED, row[Peer.ROWS_ASKED])
            parcels = self._more(slot, Peer.RECEIVED_PARCELS, row[Peer.RECEIVED_PARCELS])
            if parcels:
                self._lane.heard(peer, parcels, self._more(slot, Peer.RECEIVED_BYTES, row[Peer.RECEIVED_BYTES]))
            self._count_sent(slot, peer)

    def change_port(self, slot: int, peer: NodeId, port: int) -> None:
        """From now on, a row's counters of what was sent are those of another connection; count those of the last.

        Args:
            slot: The row.
            peer: Whose it is.
            port: Address of the connection's `Port`; 0 for none.
        """
        self._count_sent(slot, peer)
        self._ports.pop(slot, None)
        if port:
            self._ports[slot] = (ctypes.c_int64 * PORT_WORDS).from_address(port)
        for at in (Port.SENT_PARCELS, Port.SENT_BYTES):
            self._counted[slot, _OF_PORT + at] = self._ports[slot][at] if port else 0

    def _count_sent(self, slot: int, peer: NodeId) -> None:
        words = self._ports.get(slot)
        if words is not None and (parcels := self._more(slot, _OF_PORT + Port.SENT_PARCELS, words[Port.SENT_PARCELS])):
            size_bytes = self._more(slot, _OF_PORT + Port.SENT_BYTES, words[Port.SENT_BYTES])
            self._lane.sent(peer, parcels, size_bytes)

    def _more(self, slot: int, what: int, total: int) -> int:
        """How much a counter has grown since the last time."""
        key = slot, what
        before = self._counted.get(key, 0)
        self._counted[key] = total
        return total - before
