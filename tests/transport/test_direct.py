"""A lane in the hands of another thread."""

import select
import threading
import time
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import NodeId
from meshmoe.core.links import LinkShape
from meshmoe.transport.base import QueueFullError, UnreachableError
from meshmoe.transport.impaired import BREAK_AFTER_S, open_impaired_transport
from meshmoe.transport.impaired_direct import ImpairedDirectLane
from meshmoe.transport.memory import MemoryHub
from meshmoe.transport.zmq_transport import open_zmq_transport
from tests.transport.support import A, B, C, trio_test


@asynccontextmanager
async def open_pair():
    async with open_zmq_transport(A, 1) as a, open_zmq_transport(B, 1) as b:
        a.connect(B, b.endpoints)
        b.connect(A, a.endpoints)
        while not (a.connected(B, Lane.DATA) and b.connected(A, Lane.DATA)):
            await trio.sleep(0.01)
        yield a, b


def receive(lane, timeout_s=5.0):
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        parcel = lane.receive()
        if parcel is not None:
            return parcel
        lane.wait(0.2)
    raise AssertionError("nothing came")


def send_when_it_takes(lane, peer, frames, timeout_s=5.0):
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        with suppress(QueueFullError):
            return lane.send(peer, frames)
        time.sleep(0.01)
    raise AssertionError(f"{peer} takes nothing")


@trio_test
async def test_echo_from_thread_to_thread():
    async with open_pair() as (a, b):
        asking, echoing = a.open_direct(Lane.DATA), b.open_direct(Lane.DATA)

        def echo():
            for _ in range(200):
                parcel = receive(echoing)
                send_when_it_takes(echoing, parcel.sender, [bytes(frame) for frame in parcel.frames])

        def ask():
            for i in range(200):
                send_when_it_takes(asking, B, [b"%d" % i, b"x" * 100_000])
                parcel = receive(asking)
                assert [len(frame) for frame in parcel.frames] == [len(b"%d" % i), 100_000]
                assert bytes(parcel.frames[0]) == b"%d" % i

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, echo)
            await trio.to_thread.run_sync(ask)
        assert a.stats(B).sent_parcels == a.stats(B).received_parcels == 200
        assert b.stats(A).received_bytes > 200 * 100_000


@trio_test
async def test_a_lane_that_was_emptied_has_a_descriptor_that_tells_of_the_next_parcel():
    async with open_pair() as (a, b):
        asking, lane = a.open_direct(Lane.DATA), b.open_direct(Lane.DATA)

        def readable():
            return bool(select.select([lane.descriptor()], [], [], 0)[0])

        def talk():
            for number in range(5):
                assert lane.receive() is None
                while readable():  # perhaps for something of libzmq's own
                    assert lane.receive() is None
                send_when_it_takes(asking, B, [b"%d" % number] * 3)
                until_s = time.monotonic() + 5
                while not readable():
                    assert time.monotonic() < until_s
                    time.sleep(0.001)
                assert bytes(receive(lane).frames[0]) == b"%d" % number

        await trio.to_thread.run_sync(talk)


@trio_test
async def test_trio_goes_on_sending_on_the_lane_and_receiving_on_the_others():
    async with open_pair() as (a, b):
        lane = b.open_direct(Lane.DATA)
        for i in range(20):
            await a.send(B, Lane.DATA, [b"%d" % i])
        got = [bytes((await trio.to_thread.run_sync(receive, lane)).frames[0]) for _ in range(20)]
        assert got == [b"%d" % i for i in range(20)]
        await a.send(B, Lane.CONTROL, [b"hello"])
        assert bytes((await b.receive(Lane.CONTROL)).frames[0]) == b"hello"


@trio_test
async def test_wait_is_bounded_and_can_be_woken():
    async with open_pair() as (a, _):
        lane = a.open_direct(Lane.DATA)
        began_s = time.monotonic()
        await trio.to_thread.run_sync(lane.wait, 0.05)
        assert 0.04 < time.monotonic() - began_s < 5
        threading.Timer(0.05, lane.wake).start()
        began_s = time.monotonic()
        await trio.to_thread.run_sync(lane.wait, 20.0)
        assert time.monotonic() - began_s < 10


@trio_test
async def test_an_unknown_peer_and_a_closed_lane():
    async with open_pair() as (a, _):
        lane = a.open_direct(Lane.DATA)
        with pytest.raises(UnreachableError, match="not connected"):
            lane.send(C, [b"x"])
    assert lane.receive() is None
    lane.wait(10.0)  # returns at once
    lane.wake()
    lane.close()


@trio_test
async def test_memory_has_none():
    async with MemoryHub().attach(A, 1) as transport:
        assert transport.open_direct(Lane.DATA) is None


@trio_test
async def test_an_emulated_partition_refuses_on_any_thread():
    links = {B: LinkShape(rtt_s=0.01, rate_bytes_per_s=1e9)}
    async with open_pair() as (inner, b), open_impaired_transport(inner, links, 1) as a:
        lane, there = a.open_direct(Lane.DATA), b.open_direct(Lane.DATA)
        a.connect(B, b.endpoints)

        def send_and_wait():
            lane.send(B, [b"x"])
            for _ in range(3):  # each may end early
                lane.wait(0.1)

        await trio.to_thread.run_sync(send_and_wait)
        assert bytes((await trio.to_thread.run_sync(receive, there)).frames[0]) == b"x"
        a.block(B)
        await trio.sleep(BREAK_AFTER_S + 0.1)
        with pytest.raises(UnreachableError):
            await trio.to_thread.run_sync(lane.send, B, [b"x"])


@trio_test
async def test_over_an_emulated_link_a_call_takes_its_round_trip():
    links = LinkShape(rtt_s=0.01, rate_bytes_per_s=1e9)
    async with (
        open_pair() as (inner_a, inner_b),
        open_impaired_transport(inner_a, {B: links}, 1) as a,
        open_impaired_transport(inner_b, {A: links}, 2) as b,
    ):
        a.connect(B, b.endpoints)
        b.connect(A, a.endpoints)
        asking, echoing = a.open_direct(Lane.DATA), b.open_direct(Lane.DATA)

        def echo():
            for _ in range(20):
                parcel = receive(echoing)
                send_when_it_takes(echoing, parcel.sender, [bytes(frame) for frame in parcel.frames])
            for _ in range(3):
                echoing.wait(0.05)

        def ask():
            took_s = []
            for i in range(20):
                began_s = time.monotonic()
                asking.send(B, [b"%d" % i])
                assert bytes(receive(asking).frames[0]) == b"%d" % i
                took_s.append(time.monotonic() - began_s)
            return took_s

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, echo)
            took_s = await trio.to_thread.run_sync(ask)
        assert min(took_s) >= 0.01


@trio_test
async def test_what_is_under_way_to_a_peer_that_is_disconnected_is_dropped():
    links = {B: LinkShape(rtt_s=0.2, rate_bytes_per_s=1e9)}
    async with open_pair() as (inner, b), open_impaired_transport(inner, links, 1) as a:
        lane, there = a.open_direct(Lane.DATA), b.open_direct(Lane.DATA)
        a.connect(B, b.endpoints)
        lane.send(B, [b"old"])
        a.disconnect(B)
        a.connect(B, b.endpoints)
        lane.send(B, [b"new"])

        def deliver():
            for _ in range(3):
                lane.wait(0.2)

        await trio.to_thread.run_sync(deliver)
        assert bytes((await trio.to_thread.run_sync(receive, there)).frames[0]) == b"new"
        assert a.stats(B).dropped_parcels == 1


class SlowSleeper:
    """Stands for a lane and for the clock of a thread that wakes up 30 us late, whatever it waits for."""

    LATE_S, LOOK_S = 30e-6, 1e-7

    def __init__(self):
        self.now_s, self.late_s = 0.0, []
        self.due_s = 0.0

    def current_time(self):
        self.now_s += self.LOOK_S
        return self.now_s

    def wait(self, timeout_s, awake_s=0.0):
        self.now_s += timeout_s + self.LATE_S

    def send(self, peer, frames):
        self.late_s.append(self.now_s - self.due_s)

    def wake(self):
        pass

    native = enter = leave = drained = parcel = refuse = still = heard = sent = wake

    def emulates(self, peer):
        return True

    def is_life(self, peer, life):
        return True

    def pass_alone(self, peer, lane, frames, now_s):
        self.due_s = now_s + 600e-6
        return self.due_s, 0


@trio_test
async def test_a_thread_that_wakes_up_late_learns_to_deliver_in_time_and_never_early():
    sleeper = SlowSleeper()
    lane = ImpairedDirectLane(sleeper, sleeper, Lane.DATA)
    lane._clock = sleeper
    for _ in range(100):
        lane.send(NodeId("b"), [b"x"])
        assert lane.descriptor() is None, "it has to come back in time for what is on its way"
        lane.wait(1.0)
    assert len(sleeper.late_s) == 100
    assert min(sleeper.late_s) >= 0
    assert sleeper.late_s[0] > 25e-6
    assert max(sleeper.late_s[-50:]) < 1e-6
    assert lane._early_s < 40e-6, "it wakes up no earlier than it has to"
