"""A lane in the hands of compiled code, for which ctypes stands here: the same functions by the same addresses."""

import ctypes
import threading
import time
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel
import zmq

from meshmoe.core.endpoints import Lane
from meshmoe.transport import native, zmq_direct
from meshmoe.transport.base import QueueFullError
from meshmoe.transport.native import NativeFrame, NativeMutex, functions
from meshmoe.transport.native_tables import Port, Table
from meshmoe.transport.ports import Ports
from meshmoe.transport.zmq_transport import open_zmq_transport
from tests.transport.native_driver import Receiver, libzmq, mutex_held, send, words_at
from tests.transport.support import A, B, C, contents, trio_test, until
from tests.transport.test_admission import KEYS, keyring

pytestmark = pytest.mark.skipif(functions() is None, reason="libzmq's functions cannot be had here")


@asynccontextmanager
async def open_pair(rings=(None, None)):
    async with open_zmq_transport(A, 1, keyring=rings[0]) as a, open_zmq_transport(B, 1, keyring=rings[1]) as b:
        a.connect(B, b.endpoints)
        b.connect(A, a.endpoints)
        await until(lambda: a.connected(B, Lane.DATA) and b.connected(A, Lane.DATA))
        yield a, b


def test_the_functions_are_those_of_the_libzmq_that_pyzmq_uses(monkeypatch):
    with zmq.Context() as context, context.socket(zmq.PAIR) as here, context.socket(zmq.PAIR) as there:
        here.bind("inproc://here")
        there.connect("inproc://here")
        assert libzmq().zmq_send(there.underlying, b"by address", 10, 0) == 10
        assert here.recv() == b"by address"
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 1, 0))
    assert native._libzmq.__wrapped__() is None, "another one is not taken"


def test_a_table_lies_on_a_line_of_its_own_and_both_views_are_the_same_memory():
    for count in (8, 32):
        table = Table(count)
        assert table.address % 64 == 0
        table.reals[count - 1] = 1.5
        assert words_at(table.address, count)[count - 1] == table.words[count - 1] == 0x3FF8000000000000
        with pytest.raises(IndexError):
            table.words[count] = 1


def test_a_mutex_keeps_others_out_and_lets_them_run_meanwhile():
    table = Table(16)
    mutex, held, done = NativeMutex(table.address), threading.Event(), []

    def hold():
        with mutex_held(table.address):  # as compiled code does
            held.set()
            time.sleep(0.05)
            done.append("first")

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    with mutex:  # without the interpreter's lock, or the other thread would never let go
        done.append("second")
    other.join()
    assert done == ["first", "second"]
    with pytest.raises(ZeroDivisionError), mutex:
        raise ZeroDivisionError
    assert ctypes.CDLL(None).pthread_mutex_trylock(ctypes.c_void_p(table.address)) == 0, "it was let go"


def test_many_threads_count_under_a_mutex():
    table = Table(16)
    mutex, total = NativeMutex(table.address), 0

    def count():
        nonlocal total
        for _ in range(2000):
            with mutex:
                seen = total
                time.sleep(0)
                total = seen + 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total == 8000


def test_a_frame_of_a_message_outlives_it():
    memory = (ctypes.c_char * 64)()
    at = ctypes.addressof(memory)
    calls = libzmq()
    for content in (b"", b"x" * 10, b"y" * 100_000):
        with zmq.Context() as context, context.socket(zmq.PAIR) as here, context.socket(zmq.PAIR) as there:
            here.bind("inproc://here")
            there.connect("inproc://here")
            there.send(content)
            calls.zmq_msg_init(at)
            assert calls.zmq_msg_recv(at, here.underlying, 0) == len(content)
        frame = NativeFrame(at)
        for option in ("User-Id", zmq.SRCFD):
            with pytest.raises(zmq.ZMQError):
                frame.get(option)
        frame.close()
        assert bytes(frame.buffer) == content
        assert not frame.buffer.readonly or not content, "as pyzmq's"


@pytest.mark.parametrize("rings", [False, True])
@trio_test
async def test_what_a_compiled_end_sends_a_compiled_end_receives(rings):
    async with open_pair((keyring(A, A, B), keyring(B, A, B)) if rings else (None, None)) as (a, b):
        asking, answering = a.open_direct(Lane.DATA), b.open_direct(Lane.DATA)

        def answer():
            receiver = Receiver(answering)
            for _ in range(100):
                arrived = receiver.receive()
                while not send(answering.port(A), contents(arrived.parcel)):
                    time.sleep(0.001)

        def ask():
            receiver = Receiver(asking)
            for number in range(100):
                frames = [b"%d" % number, b"x" * (number * 997)]
                while not send(asking.port(B), frames):
                    time.sleep(0.001)
                arrived = receiver.receive()
                assert (arrived.parcel.sender, arrived.parcel.generation) == (B, 1)
                assert contents(arrived.parcel) == frames
                assert arrived.user_id == (KEYS[B].public.hex().encode() if rings else b"")
                assert asking.still(arrived.routing_id, arrived.user_id, B)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, answer)
            await trio.to_thread.run_sync(ask)
        assert words_at(asking.port(B))[Port.SENT_PARCELS] == 100
        assert a.stats(B).received_parcels == b.stats(A).received_parcels == 100
        assert a.stats(B).sent_parcels == 0, "it is for the thread to tell what compiled code has counted"
        asking.sent(B, 100, 1234)
        asking.heard(B, 1, 10)
        assert (a.stats(B).sent_parcels, a.stats(B).sent_bytes, a.stats(B).received_parcels) == (100, 1234, 101)


@trio_test
async def test_compiled_code_and_python_take_turns_at_one_lane_in_both_directions():
    async with open_pair() as (a, b):
        sending, lane = a.open_direct(Lane.DATA), b.open_direct(Lane.DATA)

        def talk():
            receiver = Receiver(lane)
            for number in range(300):
                frames = [b"%d" % number]
                if number % 2:
                    while not send(sending.port(B), frames):
                        time.sleep(0.001)
                else:
                    while True:
                        try:
                            sending.send(B, frames)
                            break
                        except QueueFullError:
                            time.sleep(0.001)
                if number % 3:
                    assert contents(receiver.receive().parcel) == frames
                else:
                    until_s = time.monotonic() + 10
                    while (parcel := lane.receive()) is None:
                        assert time.monotonic() < until_s
                        lane.wait(0.5)
                    assert contents(parcel) == frames

        await trio.to_thread.run_sync(talk)


@trio_test
async def test_a_connection_is_open_to_compiled_code_only_while_nothing_waits_before_it():
    async with open_pair() as (a, b):
        lane, there = a.open_direct(Lane.DATA), b.open_direct(Lane.DATA)
        port = lane.port(B)
        assert words_at(port)[Port.OPEN] == 1
        posted = 0
        with pytest.raises(QueueFullError):
            while True:  # quickly: a peer that reads nothing for two seconds counts as lost, with all that waits
                a.post(B, Lane.DATA, [b"%d" % posted, bytes(64 << 10)])
                posted += 1
        assert words_at(port)[Port.OPEN] == 0
        assert not send(port, [b"past the queue"])

        def receive_all():
            receiver = Receiver(there)
            return [contents(receiver.receive().parcel)[0] for _ in range(posted)]

        assert await trio.to_thread.run_sync(receive_all) == [b"%d" % number for number in range(posted)]
        await until(lambda: words_at(port)[Port.OPEN] == 1)


@trio_test
async def test_a_peer_that_comes_back_has_the_same_table_and_no_other_peer_gets_it():
    async with open_pair() as (a, b), open_zmq_transport(C, 1) as c:
        lane = a.open_direct(Lane.DATA)
        port = lane.port(B)
        before = words_at(port)[Port.SOCKET]
        assert before
        assert lane.port(C) == 0
        a.disconnect(B)
        assert (words_at(port)[Port.OPEN], words_at(port)[Port.SOCKET], lane.port(B)) == (0, 0, 0)
        assert not send(port, [b"to nobody"])
        a.connect(C, c.endpoints)
        assert lane.port(C) not in (0, port)
        a.connect(B, b.endpoints)
        assert lane.port(B) == port
        assert words_at(port)[Port.OPEN] == 1
        for _ in range(50):  # as the last task of the old connection ends, the table is the new one's
            a.disconnect(B)
            a.connect(B, b.endpoints)
            await trio.lowlevel.checkpoint()
            assert words_at(port)[Port.OPEN] == 1
    assert words_at(port)[Port.OPEN] == 0
    assert lane.port(B) == 0
    assert lane.native() is None


def test_only_so_many_names_get_a_table():
    ports = Ports(2)
    tables = [ports.of(A, Lane.DATA), ports.of(A, Lane.BULK), ports.of(B, Lane.DATA)]
    assert [bool(port.address) for port in tables] == [True, True, False]
    assert ports.of(A, Lane.DATA) is tables[0]
    with tables[2].lock:
        tables[2].mark(is_open=True, socket=1)


@trio_test
async def test_what_is_no_parcel_is_counted_and_a_key_that_goes_out_no_longer_counts():
    ring = keyring(B, A, B)
    async with open_pair((keyring(A, A, B), ring)) as (a, b):
        lane = b.open_direct(Lane.DATA)
        receiver = Receiver(lane)
        bad = b.bad_messages
        raw = a._outbound[B][Lane.DATA]._socket._raw
        raw.send_multipart([b"one", b"two", b"three"])
        raw.send(b"\xff no envelope")
        for _ in range(2):
            assert await trio.to_thread.run_sync(receiver.receive) is None
        assert b.bad_messages == bad + 2

        a.post(B, Lane.DATA, [b"fine"])
        arrived = await trio.to_thread.run_sync(receiver.receive)
        known = arrived.routing_id, arrived.user_id
        assert lane.still(*known, A)
        assert not lane.still(*known, B)
        now_s = trio.current_time()
        ring.ban(arrived.user_id.decode(), now_s + 60)
        assert not lane.still(*known, A)
        ring.ban(arrived.user_id.decode(), now_s - 60)
        assert lane.still(*known, A)
        ring.assign({B: KEYS[B].public})
        assert not lane.still(*known, A)
        a.post(B, Lane.DATA, [b"not any more"])
        assert await trio.to_thread.run_sync(receiver.receive) is None
        assert b.bad_messages == bad + 3
        await until(lambda: not a.connected(B, Lane.DATA))


@trio_test
async def test_compiled_code_sees_by_itself_whose_message_it_is():
    """By the two texts that `parcel` has told it: what makes it possible to take an answer without Python."""
    async with open_pair((keyring(A, A, B), keyring(B, A, B))) as (a, b):
        lane = b.open_direct(Lane.DATA)
        receiver = Receiver(lane)
        a.post(B, Lane.DATA, [b"1"])
        arrived = await trio.to_thread.run_sync(receiver.receive)
        a.post(B, Lane.DATA, [b"2"])
        with trio.fail_after(10):
            while True:
                assert lane.enter()
                found, _ = receiver.look()
                lane.leave()
                if found:
                    break
                await trio.sleep(0.01)
        assert receiver.user_id() == arrived.user_id
        again = lane.parcel(receiver.messages)
        assert (again.routing_id, contents(again.parcel)) == (arrived.routing_id, [b"2"])


@trio_test
async def test_closing_waits_until_compiled_code_has_left():
    left, began = [], threading.Event()

    def serve(lane):
        receiver = Receiver(lane)
        assert lane.enter()
        began.set()
        try:
            assert receiver.receive_wake()
            time.sleep(0.1)
            assert receiver.look() == (False, False), "the socket still is one"
            left.append("compiled code")
        finally:
            lane.leave()
        assert not lane.enter()
        assert lane.receive() is None
        lane.wait(10.0)

    async with trio.open_nursery() as nursery:
        async with open_pair() as (a, _):
            nursery.start_soon(trio.to_thread.run_sync, serve, a.open_direct(Lane.DATA))
            await trio.to_thread.run_sync(began.wait)
        left.append("transport")
    assert left == ["compiled code", "transport"]


@trio_test
async def test_compiled_code_that_never_leaves_is_not_waited_for_for_ever(monkeypatch, caplog):
    monkeypatch.setattr(zmq_direct, "_LEFT_S_MAX", 0.05)
    async with open_pair() as (a, _):
        lane = a.open_direct(Lane.DATA)
        assert lane.enter()
    assert "does not leave the data lane" in caplog.text
    lane.leave()
    assert not lane.enter()


@trio_test
async def test_a_thread_that_waits_is_told_of_the_end():
    async with trio.open_nursery() as nursery, open_pair() as (a, _):
        lane = a.open_direct(Lane.DATA)

        def wait():
            began_s = time.monotonic()
            while lane.enter():
                lane.leave()
                assert lane.receive() is None
                lane.wait(30.0)
            assert time.monotonic() - began_s < 20

        nursery.start_soon(trio.to_thread.run_sync, wait)
        await trio.sleep(0.1)


@trio_test
async def test_a_transport_closes_while_both_ends_talk():
    """Whatever moment that meets: no socket is used that is closed, which would end the process."""
    for delay_s in (0.0, 0.003, 0.01, 0.03):
        async with trio.open_nursery() as nursery, open_pair() as (a, b):
            lanes = a.open_direct(Lane.DATA), b.open_direct(Lane.DATA)

            def talk(lane, peer):
                receiver = Receiver(lane)
                port = lane.port(peer)
                while port:
                    send(port, [b"x" * 100])
                    if receiver.receive() is None:
                        return

            for lane, peer in zip(lanes, (B, A), strict=True):
                nursery.start_soon(trio.to_thread.run_sync, talk, lane, peer)
            await trio.sleep(delay_s)
