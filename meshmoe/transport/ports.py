"""The connections' tables for compiled code: one a peer and lane, kept for as long as the transport lives.

Whoever holds a table's address may go on using it: a connection that is closed leaves its table closed, and the next
one to the same peer takes it over. No other peer ever gets it.
"""

from __future__ import annotations

import threading

from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import NodeId
from meshmoe.transport.native import NativeMutex, functions
from meshmoe.transport.native_tables import PORT_WORDS, Port, Table


class PortTable:
    """What `meshmoe.transport.zmq_outbound` tells compiled code of a connection, and the lock that both hold.

    Attributes:
        lock: Around all use of the connection.
        address: Of the table (`Port`); 0 where compiled code cannot use it.
    """

    def __init__(self, *, native: bool) -> None:
        self._table = Table(PORT_WORDS)
        self._words = self._table.words
        self.address = self._table.address if native else 0
        self.lock: NativeMutex | threading.Lock = (
            NativeMutex(self._table.address + 8 * Port.MUTEX) if native else threading.Lock()
        )

    def mark(self, *, is_open: bool, socket: int) -> None:
        """Say whether a message may go straight to libzmq, and where; under the lock.

        Args:
            is_open: See `Port.OPEN`.
            socket: See `Port.SOCKET`.
        """
        self._words[Port.OPEN] = is_open
        self._words[Port.SOCKET] = socket


class Ports:
    """All tables of a transport."""

    def __init__(self, ports_max: int) -> None:
        """Begin with none.

        Args:
            ports_max: So many are kept, as names come from the network; connections beyond them are Python's alone.
        """
        self._ports: dict[tuple[NodeId, Lane], PortTable] = {}
        self._ports_max = ports_max
        self._native = functions() is not None

    def of(self, peer: NodeId, lane: Lane) -> PortTable:
        """The table for a connection, which must be the only one to that peer on that lane."""
        port = self._ports.get((peer, lane))
        if port is None:
            port = PortTable(native=self._native and len(self._ports) < self._ports_max)
            if port.address:
                self._ports[peer, lane] = port
        return port
