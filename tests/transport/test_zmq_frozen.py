"""A peer that is stopped (SIGSTOP): its kernel still takes bytes, its process does not."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import trio

from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.core.ids import node_id
from meshmoe.transport.base import QueueFullError, UnreachableError
from meshmoe.transport.zmq_knobs import DEFAULT_KNOBS
from meshmoe.transport.zmq_transport import open_zmq_transport
from tests.transport.support import A, B, C, contents, free_port, receive_all, trio_test, until

PATIENT = node_id("patient")
PATIENT_KNOBS = replace(DEFAULT_KNOBS, heartbeat_timeout_ms=4500)

# Reads from every lane and answers the number of bytes to the sender's control lane.
_PEER = """
import sys, trio
from contextlib import suppress
from dataclasses import replace
from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.core.ids import NodeId
from meshmoe.transport.base import UnreachableError
from meshmoe.transport.zmq_knobs import DEFAULT_KNOBS
from meshmoe.transport.zmq_transport import open_zmq_transport

async def serve(transport, lane):
    while True:
        parcel = await transport.receive(lane)
        with suppress(UnreachableError):  # its own connection broke while it was stopped: it is asked again
            await transport.send(NodeId("a"), Lane.CONTROL, [b"%d" % sum(map(len, parcel.frames))])

async def main():
    knobs = replace(DEFAULT_KNOBS, heartbeat_ttl_ms=int(sys.argv[3]))
    async with open_zmq_transport(NodeId("b"), 1, "127.0.0.1", int(sys.argv[1]), knobs=knobs) as transport:
        transport.connect(NodeId("a"), Endpoints("127.0.0.1", int(sys.argv[2])))
        async with trio.open_nursery() as nursery:
            for lane in Lane:
                nursery.start_soon(serve, transport, lane)

trio.run(main)
"""


@pytest.fixture
def port():
    return free_port()


class Peer:
    def __init__(self, port: int, back: int, ttl_ms: int = DEFAULT_KNOBS.heartbeat_ttl_ms) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", _PEER, str(port), str(back), str(ttl_ms)])

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


@trio_test
async def test_a_frozen_peer_costs_bounded_memory_and_nobody_else(port):
    async with (
        open_zmq_transport(A, 1) as a,
        open_zmq_transport(C, 1) as c,
        open_zmq_transport(PATIENT, 1, knobs=PATIENT_KNOBS) as patient,
    ):
        with Peer(port, a.endpoints.control_port, ttl_ms=0) as peer:  # it would tell all how long to be patient
            for transport in (a, patient):
                transport.connect(B, Endpoints("127.0.0.1", port, port + 1, port + 2))
            a.connect(C, c.endpoints)
            await a.send(B, Lane.BULK, [b"1234"])
            assert contents(await a.receive(Lane.CONTROL)) == [b"4"]
            await until(lambda: patient.reachable(B, Lane.BULK))

            peer.signal(signal.SIGSTOP)
            frozen_s = time.monotonic()
            taken, refusals = 0, set()
            while time.monotonic() - frozen_s < 1.0:
                try:
                    a.post(B, Lane.BULK, [bytes(1 << 20)])
                    taken += 1
                except QueueFullError:
                    refusals.add(QueueFullError)
                    await trio.sleep(0.01)
            assert refusals == {QueueFullError}
            assert taken < 60
            for lane in Lane:
                a.post(C, lane, [b"alive"])
                assert contents(await c.receive(lane)) == [b"alive"]

            # The heartbeat gives up on it within interval + timeout, and what waited is dropped.
            assert a.reachable(B, Lane.BULK)
            await until(lambda: not a.reachable(B, Lane.BULK), within_s=20)
            assert patient.reachable(B, Lane.BULK), "2 s by the heartbeat, not 5 as by a slower one, nor minutes by TCP"
            with pytest.raises(UnreachableError):
                a.post(B, Lane.BULK, [b"x"])
            assert a.stats(B).dropped_parcels > 0

            peer.signal(signal.SIGCONT)
            await until(lambda: a.reachable(B, Lane.DATA) and a.reachable(B, Lane.CONTROL), within_s=30)
            answer = b""
            while answer != b"77":  # before it come answers to what had reached its kernel, and one of ours may be lost
                with suppress(UnreachableError):
                    await a.send(B, Lane.DATA, [bytes(77)])
                with trio.move_on_after(0.5):
                    while answer != b"77":
                        (answer,) = contents(await a.receive(Lane.CONTROL))


@trio_test
async def test_a_short_freeze_loses_nothing(port):
    async with open_zmq_transport(A, 1) as a:
        with Peer(port, a.endpoints.control_port) as peer:
            a.connect(B, Endpoints("127.0.0.1", port, port + 1, port + 2))
            await a.send(B, Lane.DATA, [b"1234"])
            await a.receive(Lane.CONTROL)
            peer.signal(signal.SIGSTOP)
            sizes = [1000 + number for number in range(200)]
            async with trio.open_nursery() as nursery:

                async def send_all():
                    for size in sizes:
                        await a.send(B, Lane.DATA, [bytes(size)])

                nursery.start_soon(send_all)
                await trio.sleep(0.4)
                peer.signal(signal.SIGCONT)
                got = await receive_all(a, Lane.CONTROL, len(sizes))
            assert [int(frames[0]) for frames in got] == sizes
            assert a.stats(B).dropped_parcels == 0


@trio_test
async def test_a_killed_peer_is_noticed_without_a_heartbeat(port):
    async with open_zmq_transport(A, 1, knobs=replace(DEFAULT_KNOBS, heartbeat_timeout_ms=60_000)) as a:
        with Peer(port, a.endpoints.control_port) as peer:
            a.connect(B, Endpoints("127.0.0.1", port, port + 1, port + 2))
            await a.send(B, Lane.DATA, [b"1234"])
            await a.receive(Lane.CONTROL)
            peer.signal(signal.SIGKILL)
            await until(lambda: not a.reachable(B, Lane.DATA))
