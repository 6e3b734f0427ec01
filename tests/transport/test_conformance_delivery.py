"""What every transport must do: deliver in order, whole, once, and say who sent it."""

import pytest
import trio

from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.transport.base import LinkStats, QueueFullError, UnreachableError
from meshmoe.wire.frames import FRAMES_MAX
from tests.transport.support import A, B, C, Mesh, contents, fill, free_port, receive_all, trio_test, until


@trio_test
async def test_a_parcel_arrives_with_its_sender(mesh):
    async with mesh.open(A, generation=7) as a, mesh.open(B) as b:
        a.connect(B, b.endpoints)
        for lane in Lane:
            a.post(B, lane, [b"head", b"", bytearray(b"middle"), memoryview(b"tail")])
            parcel = await b.receive(lane)
            assert (parcel.sender, parcel.generation) == (A, 7)
            assert contents(parcel) == [b"head", b"", b"middle", b"tail"]
            assert all(isinstance(frame, memoryview) for frame in parcel.frames)


@trio_test
async def test_order_within_a_lane_across_post_and_send(mesh):
    async with mesh.pair() as (a, b):
        sent = [[b"%d" % number, b"x" * (number * 37 % 9000)] for number in range(2000)]

        async def send_all():
            for number, frames in enumerate(sent):
                if number % 3:
                    await a.send(B, Lane.DATA, frames)
                    continue
                try:
                    a.post(B, Lane.DATA, frames)
                except QueueFullError:
                    await a.send(B, Lane.DATA, frames)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all)
            assert await receive_all(b, Lane.DATA, len(sent)) == sent


@trio_test
async def test_large_frames_arrive_whole(mesh):
    async with mesh.pair() as (a, b):
        chunk = bytes(range(256)) * 4096
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(a.send, B, Lane.BULK, [b"%d" % number, chunk])
            got = await receive_all(b, Lane.BULK, 8)
        assert sorted(frames[0] for frames in got) == [b"%d" % number for number in range(8)]
        assert all(frames[1] == chunk for frames in got)


@trio_test
async def test_several_senders_each_in_order(mesh):
    async with mesh.open(A) as a, mesh.open(B) as b, mesh.open(C) as c:
        for sender in (a, c):
            sender.connect(B, b.endpoints)
        got = {A: [], C: []}

        async def send_all(sender):
            for number in range(300):
                await sender.send(B, Lane.CONTROL, [b"%d" % number])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, a)
            nursery.start_soon(send_all, c)
            for _ in range(600):
                parcel = await b.receive(Lane.CONTROL)
                got[parcel.sender].append(int(bytes(parcel.frames[0])))
        assert got == {A: list(range(300)), C: list(range(300))}


@trio_test
async def test_a_node_can_talk_to_itself(mesh):
    async with mesh.open(A) as a:
        a.connect(A, a.endpoints)
        a.post(A, Lane.CONTROL, [b"me"])
        assert contents(await a.receive(Lane.CONTROL)) == [b"me"]


@trio_test
async def test_parcels_wait_for_a_peer_that_comes_later(mesh):
    async with mesh.open(A) as a:
        port = free_port()
        a.connect(B, Endpoints(a.endpoints.host, port, port + 1, port + 2))
        a.post(B, Lane.CONTROL, [b"1"])
        await a.send(B, Lane.CONTROL, [b"2"])
        await trio.sleep(0.05)
        async with mesh.open(B, port=port) as b:
            assert await receive_all(b, Lane.CONTROL, 2) == [[b"1"], [b"2"]]


@trio_test
async def test_a_restarted_peer_is_heard_and_reached_at_once(mesh):
    """Same name, same ports, next generation; what was queued for the former life is not delivered to the new one."""
    port = free_port()
    async with mesh.open(A) as a:
        for generation in (1, 2, 3):
            async with mesh.open(B, generation, port) as b:
                b.connect(A, a.endpoints)
                a.connect(B, b.endpoints)
                b.post(A, Lane.CONTROL, [b"hello %d" % generation])
                with trio.fail_after(30):
                    parcel = await a.receive(Lane.CONTROL)
                assert (parcel.sender, parcel.generation) == (B, generation)
                with trio.fail_after(30):
                    await post_until_taken(a, B, Lane.CONTROL, [b"welcome %d" % generation])
                    assert await receive_all(b, Lane.CONTROL, 1) == [[b"welcome %d" % generation]]
                assert a.reachable(B, Lane.DATA)
            await until(lambda: not takes(a, B, Lane.DATA, [b"nobody there"]))
            assert not a.reachable(B, Lane.DATA)


def takes(transport, peer, lane, frames):
    try:
        transport.post(peer, lane, frames)
    except UnreachableError:
        return False
    return True


async def post_until_taken(transport, peer, lane, frames):
    while not takes(transport, peer, lane, frames):
        await trio.sleep(0.02)


@trio_test
async def test_senders_that_wait_are_told_when_the_connection_breaks(mesh):
    async with mesh.open(A) as a:
        async with trio.open_nursery() as nursery, mesh.open(B) as b:
            a.connect(B, b.endpoints)
            await fill(a, B, Lane.BULK, [bytes(1 << 20)])

            async def refused():
                with pytest.raises(UnreachableError):
                    while True:
                        await a.send(B, Lane.BULK, [bytes(1 << 20)])

            nursery.start_soon(refused)
            await trio.sleep(0.02)
        assert a.stats(B).dropped_parcels >= 1
        assert not a.reachable(B, Lane.BULK)


@trio_test
async def test_reused_buffers_do_not_change_what_was_sent_small(mesh):
    """Small frames are copied when they are handed over to a connected peer with an empty queue."""
    if mesh.kind == "impaired":
        pytest.skip("keeps frames by reference while they are on the emulated link")
    async with mesh.pair() as (a, b):
        a.post(B, Lane.DATA, [b"up"])
        await b.receive(Lane.DATA)
        buffer = bytearray(b"before")
        a.post(B, Lane.DATA, [buffer])
        buffer[:] = b"after!"
        assert contents(await b.receive(Lane.DATA)) == [b"before"]


@trio_test
async def test_unknown_peers_and_lanes_are_unreachable(mesh):
    async with mesh.open(A) as a, mesh.open(B) as b:
        with pytest.raises(UnreachableError, match="not connected"):
            a.post(B, Lane.DATA, [b"x"])
        with pytest.raises(UnreachableError, match="not connected"):
            await a.send(B, Lane.DATA, [b"x"])
        a.connect(B, Endpoints(b.endpoints.host, b.endpoints.control_port))
        a.post(B, Lane.CONTROL, [b"x"])
        for lane in (Lane.DATA, Lane.BULK):
            with pytest.raises(UnreachableError, match="no address"):
                a.post(B, lane, [b"x"])
        a.connect(B, b.endpoints)
        a.post(B, Lane.BULK, [b"y"])
        assert contents(await b.receive(Lane.BULK)) == [b"y"]
        assert contents(await b.receive(Lane.CONTROL)) == [b"x"]
        a.disconnect(B)
        a.disconnect(B)
        a.disconnect(C)
        with pytest.raises(UnreachableError):
            a.post(B, Lane.CONTROL, [b"x"])


@trio_test
async def test_impossible_parcels_are_the_callers_mistake(mesh):
    async with mesh.pair() as (a, _):
        for frames in ([], [b""] * (FRAMES_MAX + 1), [bytes(3 << 20)]):
            with pytest.raises(ValueError, match="a parcel of"):
                a.post(B, Lane.BULK, frames)
            with pytest.raises(ValueError, match="a parcel of"):
                await a.send(B, Lane.BULK, frames)


@trio_test
async def test_counters(mesh):
    async with mesh.pair() as (a, b):
        assert a.stats(C) == LinkStats()
        for _ in range(5):
            await a.send(B, Lane.DATA, [b"four", b"more"])
        await receive_all(b, Lane.DATA, 5)
        await until(lambda: a.stats(B).sent_parcels == 5)
        assert a.stats(B) == LinkStats(sent_parcels=5, sent_bytes=40)
        assert b.stats(A) == LinkStats(received_parcels=5, received_bytes=40)


@trio_test
async def test_connecting_again_to_the_same_address_changes_nothing(mesh):
    async with mesh.pair() as (a, b):
        for number in range(100):
            a.connect(B, b.endpoints)
            await a.send(B, Lane.DATA, [b"%d" % number])
        assert await receive_all(b, Lane.DATA, 100) == [[b"%d" % number] for number in range(100)]


@pytest.mark.parametrize("kind", ["zmq", "memory"])
def test_listeners_hear_of_connections_that_break_and_not_of_those_that_are_closed(kind):
    @trio_test
    async def run():
        mesh, lost = Mesh(kind), []
        async with mesh.open(A) as a:
            a.on_lost(lambda peer, lane: lost.append((peer, lane)))
            async with mesh.open(B) as b, mesh.open(C) as c:
                for peer, other in ((B, b), (C, c)):
                    a.connect(peer, other.endpoints)
                    for lane in Lane:
                        a.post(peer, lane, [b"hello"])
                        await other.receive(lane)
                a.disconnect(C)
            await until(lambda: len(lost) == len(Lane))
            assert sorted(lost) == [(B, lane) for lane in Lane]
            assert a.stats(B).lost_connections == len(Lane)

    run()
