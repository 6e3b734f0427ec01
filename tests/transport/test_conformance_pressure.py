"""What every transport must do when a peer reads slowly, and when tasks are cancelled or the transport is closed."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from meshmoe.core.endpoints import Lane
from meshmoe.transport.base import QueueFullError, UnreachableError
from tests.transport.support import A, B, C, fill, receive_all, trio_test

CHUNK = bytes(1 << 20)


@trio_test
async def test_a_peer_that_does_not_read_fills_its_queue_and_loses_nothing(mesh):
    async with mesh.pair() as (a, b):
        count = await fill(a, B, Lane.BULK, [CHUNK])
        assert 16 <= count < 100  # bounded: our queue, libzmq's two, and the kernel's buffers
        with pytest.raises(QueueFullError, match="bulk lane"):
            a.post(B, Lane.BULK, [CHUNK])
        got = await receive_all(b, Lane.BULK, count)
        assert [int(frames[0]) for frames in got] == list(range(count))
        a.post(B, Lane.BULK, [b"again"])
        assert await receive_all(b, Lane.BULK, 1) == [[b"again"]]
        assert a.stats(B).dropped_parcels == 0


@trio_test
async def test_a_slow_peer_or_lane_does_not_hold_up_others(mesh):
    async with mesh.open(A) as a, mesh.open(B) as b, mesh.open(C) as c:
        a.connect(B, b.endpoints)
        a.connect(C, c.endpoints)
        await fill(a, B, Lane.BULK, [CHUNK])
        with trio.fail_after(5):
            for peer, transport, lane in ((C, c, Lane.BULK), (B, b, Lane.CONTROL), (B, b, Lane.DATA)):
                a.post(peer, lane, [b"through"])
                assert await receive_all(transport, lane, 1) == [[b"through"]]


@trio_test
async def test_senders_wait_for_room_in_the_order_they_came(mesh):
    async with mesh.pair() as (a, b):
        count = await fill(a, B, Lane.BULK, [CHUNK])
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(a.send, B, Lane.BULK, [b"waited %d" % number])
                await wait_all_tasks_blocked()
            got = [frames[0] for frames in await receive_all(b, Lane.BULK, count + 10)]
        assert got[count:] == [b"waited %d" % number for number in range(10)]


@trio_test
async def test_a_cancelled_send_was_sent_whole_or_not_at_all(mesh):
    async with mesh.pair() as (a, b):
        completed, cancelled = [], []

        async def send_all():
            for number in range(400):
                with trio.CancelScope(deadline=trio.current_time() + (number % 7) * 0.0004) as scope:
                    await a.send(B, Lane.BULK, [b"%d" % number, CHUNK[: number * 997], b"end"])
                    completed.append(number)
                if scope.cancelled_caught:
                    cancelled.append(number)
            await a.send(B, Lane.BULK, [b"last"])

        got = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all)
            while True:
                parcel = await b.receive(Lane.BULK)
                if bytes(parcel.frames[0]) == b"last":
                    break
                number = int(bytes(parcel.frames[0]))
                assert [len(frame) for frame in parcel.frames[1:]] == [len(CHUNK[: number * 997]), 3]
                got.append(number)
                await trio.sleep(0.0005 if number % 5 else 0)
        assert got == completed
        assert len(got) + len(cancelled) == 400


@trio_test
async def test_a_cancelled_receive_loses_nothing(mesh):
    async with mesh.pair() as (a, b):

        async def send_all():
            for number in range(500):
                await a.send(B, Lane.DATA, [b"%d" % number])
                if number % 10 == 0:
                    await trio.sleep(0.001)

        got, cancellations = [], 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all)
            while len(got) < 500:
                with trio.move_on_after((len(got) + cancellations) % 4 * 0.0003) as scope:
                    got.append(int(bytes((await b.receive(Lane.DATA)).frames[0])))
                cancellations += scope.cancelled_caught
        assert got == list(range(500))
        assert cancellations > 20


@trio_test
async def test_cancellation_is_noticed_even_when_nothing_has_to_wait(mesh):
    async with mesh.pair() as (a, b):
        a.post(B, Lane.DATA, [b"kept"])
        with trio.CancelScope() as scope:
            scope.cancel()
            await a.send(B, Lane.DATA, [b"not sent"])
        assert scope.cancelled_caught
        await trio.sleep(0.05)
        with trio.CancelScope() as scope:
            scope.cancel()
            await b.receive(Lane.DATA)
        assert scope.cancelled_caught
        assert await receive_all(b, Lane.DATA, 1) == [[b"kept"]]
        with trio.move_on_after(0.05) as scope:
            await b.receive(Lane.DATA)
        assert scope.cancelled_caught


@trio_test
async def test_a_hot_reader_lets_others_run(mesh):
    """While parcels are taken that are all there already, another task gets a turn at least once in some twenty."""
    async with mesh.pair() as (a, b):
        turns = 0

        async def count_turns():
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        for number in range(200):
            a.post(B, Lane.DATA, [b"%d" % number])
        await trio.sleep(0.2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            await receive_all(b, Lane.DATA, 200)
            assert turns >= 8
            nursery.cancel_scope.cancel()


@trio_test
async def test_two_receivers_on_a_lane_are_refused(mesh):
    async with mesh.pair() as (_, b), trio.open_nursery() as nursery:
        nursery.start_soon(b.receive, Lane.DATA)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await b.receive(Lane.DATA)
        nursery.cancel_scope.cancel()


@trio_test
async def test_closing_wakes_receivers_and_senders(mesh):
    outcomes = []

    async def expect(error, operation, *args):
        with pytest.raises(error):
            await operation(*args)
        outcomes.append(error)

    async with trio.open_nursery() as nursery, mesh.open(A) as a, mesh.open(B) as b:
        a.connect(B, b.endpoints)
        await fill(a, B, Lane.BULK, [CHUNK])
        for lane in Lane:
            nursery.start_soon(expect, trio.ClosedResourceError, a.receive, lane)
        for _ in range(3):
            nursery.start_soon(expect, (UnreachableError, trio.ClosedResourceError), a.send, B, Lane.BULK, [CHUNK])
        await wait_all_tasks_blocked()
        assert outcomes == []
    assert len(outcomes) == 6
    with pytest.raises(trio.ClosedResourceError):
        await a.receive(Lane.DATA)
    with pytest.raises((UnreachableError, trio.ClosedResourceError)):
        a.post(B, Lane.DATA, [b"late"])
    with pytest.raises(trio.ClosedResourceError):
        a.connect(B, b.endpoints)


@trio_test
async def test_disconnecting_wakes_senders_and_drops_the_queue(mesh):
    async with mesh.pair() as (a, b):
        await fill(a, B, Lane.BULK, [CHUNK])
        async with trio.open_nursery() as nursery:

            async def refused():
                with pytest.raises(UnreachableError):
                    await a.send(B, Lane.BULK, [CHUNK])

            for _ in range(3):
                nursery.start_soon(refused)
            await wait_all_tasks_blocked()
            a.disconnect(B)
        assert a.stats(B).dropped_parcels >= 16
        a.connect(B, b.endpoints)
        a.post(B, Lane.CONTROL, [b"back"])
        assert await receive_all(b, Lane.CONTROL, 1) == [[b"back"]]


@trio_test
async def test_errors_of_the_body_come_out_as_they_are(mesh):
    with pytest.raises(KeyError, match="mine"):
        async with mesh.pair():
            raise KeyError("mine")
