"""Keys at the sockets: who is heard, on which lane, as whom, and what becomes of it when a key goes out."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
import zmq

from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import NodeId
from meshmoe.transport.base import UnreachableError
from meshmoe.transport.identity import Identity, identity_bytes
from meshmoe.transport.keyring import Keyring, new_key_pair
from meshmoe.transport.zap import GuestBook, TokenBucket
from meshmoe.transport.zmq_transport import open_zmq_transport
from tests.transport.support import A, B, C, contents, trio_test, until

KEYS = {name: new_key_pair() for name in (A, B, C)}


def keyring(own: NodeId, *members: NodeId) -> Keyring:
    made = Keyring(KEYS[own])
    made.assign({name: KEYS[name].public for name in members})
    return made


@trio_test
async def test_members_talk_on_every_lane():
    async with (
        open_zmq_transport(A, 1, keyring=keyring(A, A, B)) as a,
        open_zmq_transport(B, 1, keyring=keyring(B, A, B)) as b,
    ):
        a.connect(B, b.endpoints)
        for lane in Lane:
            a.post(B, lane, [b"hello", bytes(5000)])
            parcel = await b.receive(lane)
            assert (parcel.sender, parcel.guest, contents(parcel)) == (A, "", [b"hello", bytes(5000)])
            await until(lambda lane=lane: a.connected(B, lane))  # told by the monitor, maybe later


@trio_test
async def test_a_key_that_is_not_admitted_is_a_guest_on_the_control_lane_only():
    async with (
        open_zmq_transport(A, 1, keyring=keyring(A, A, B)) as a,
        open_zmq_transport(B, 1, keyring=keyring(B, B)) as b,
    ):
        a.connect(B, b.endpoints)
        a.post(B, Lane.CONTROL, [b"let me in"])
        parcel = await b.receive(Lane.CONTROL)
        assert (parcel.sender, parcel.guest) == (A, KEYS[A].public.hex())
        assert b.stats(A).received_parcels == 0, "nothing is counted as that of the node it calls itself"
        await until(lambda: b._zap.refused >= 2)
        assert not a.connected(B, Lane.DATA) and not a.connected(B, Lane.BULK)


@trio_test
async def test_a_member_that_is_admitted_later_gets_through_by_itself():
    ring = keyring(B, B)
    async with (
        open_zmq_transport(A, 1, keyring=keyring(A, A, B)) as a,
        open_zmq_transport(B, 1, keyring=ring) as b,
    ):
        a.connect(B, b.endpoints)
        a.post(B, Lane.DATA, [b"early"])
        await until(lambda: b._zap.refused >= 1)
        ring.assign({name: KEYS[name].public for name in (A, B)})
        assert contents(await b.receive(Lane.DATA)) == [b"early"]


@trio_test
async def test_a_key_that_goes_out_is_out_at_once_although_its_connection_stands():
    ring = keyring(B, A, B)
    async with (
        open_zmq_transport(A, 1, keyring=keyring(A, A, B)) as a,
        open_zmq_transport(B, 1, keyring=ring) as b,
    ):
        a.connect(B, b.endpoints)
        a.post(B, Lane.DATA, [b"1"])
        await b.receive(Lane.DATA)
        ring.assign({B: KEYS[B].public})
        bad = b.bad_messages
        a.post(B, Lane.DATA, [b"2"])
        with trio.move_on_after(0.5):
            await b.receive(Lane.DATA)
            raise AssertionError("it was heard")
        assert b.bad_messages == bad + 1
        await until(lambda: not a.connected(B, Lane.DATA))


@trio_test
async def test_nobody_takes_the_place_of_a_connection_whose_name_it_knows():
    """C, a member, presents the very routing id of A's connection: it is not heard as A, and A is, once C has gone.

    While it is there it disturbs A, whose connection libzmq replaces; so the id has 62 bits of chance in it.
    """
    ring = keyring(B, A, B, C)
    async with (
        open_zmq_transport(A, 1, keyring=keyring(A, A, B)) as a,
        open_zmq_transport(B, 1, keyring=ring) as b,
    ):
        a.connect(B, b.endpoints)
        a.post(B, Lane.DATA, [b"from a"])
        assert (await b.receive(Lane.DATA)).sender == A
        stolen = next(iter(b._inbound[Lane.DATA]._identities))
        context = zmq.Context()
        raw = context.socket(zmq.DEALER)
        raw.set(zmq.LINGER, 0)
        raw.set(zmq.ROUTING_ID, stolen)
        raw.set(zmq.CURVE_PUBLICKEY, KEYS[C].public)
        raw.set(zmq.CURVE_SECRETKEY, KEYS[C].secret)
        raw.set(zmq.CURVE_SERVERKEY, KEYS[B].public)
        raw.connect(f"tcp://127.0.0.1:{b.endpoints.data_port}")
        raw.send(b"\x01from c")
        with trio.move_on_after(0.7):
            parcel = await b.receive(Lane.DATA)
            raise AssertionError(f"heard {contents(parcel)} as {parcel.sender}")
        assert b.bad_messages >= 1
        raw.close()
        context.term()
        parcel = None
        while parcel is None:
            with suppress(UnreachableError):
                a.post(B, Lane.DATA, [b"still a"])
            with trio.move_on_after(0.3):
                parcel = await b.receive(Lane.DATA)
        assert (parcel.sender, contents(parcel)) == (A, [b"still a"])


@trio_test
async def test_a_peer_without_a_known_key_is_connected_once_it_is_known():
    ring = keyring(A, A)
    async with (
        open_zmq_transport(A, 1, keyring=ring) as a,
        open_zmq_transport(B, 1, keyring=keyring(B, A, B)) as b,
    ):
        a.connect(B, b.endpoints)
        with pytest.raises(UnreachableError, match="its key is not known yet"):
            a.post(B, Lane.DATA, [b"x"])
        ring.assign({name: KEYS[name].public for name in (A, B)})
        a.post(B, Lane.DATA, [b"x"])
        assert contents(await b.receive(Lane.DATA)) == [b"x"]


@trio_test
async def test_a_banned_key_is_cut_off_until_its_time_is_over():
    ring = keyring(B, A, B)
    async with (
        open_zmq_transport(A, 1, keyring=keyring(A, A, B)) as a,
        open_zmq_transport(B, 1, keyring=ring) as b,
    ):
        a.connect(B, b.endpoints)
        a.post(B, Lane.DATA, [b"1"])
        await b.receive(Lane.DATA)
        ring.ban(KEYS[A].public.hex(), trio.current_time() + 2.0)
        a.post(B, Lane.DATA, [b"2"])
        with trio.move_on_after(0.3):
            await b.receive(Lane.DATA)
            raise AssertionError("it was heard")
        await until(lambda: a.connected(B, Lane.DATA))
        a.post(B, Lane.DATA, [b"3"])
        assert contents(await b.receive(Lane.DATA)) == [b"3"]


def test_the_routing_id_of_a_connection_cannot_be_guessed():
    names = {identity_bytes(Identity(Lane.DATA, 1, number, A)) for number in (1 << 61, (1 << 62) - 1)}
    assert len(names) == 2 and max(map(len, names)) < 200


def test_buckets_and_guests():
    bucket = TokenBucket(burst=3, per_s=2)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.take(0.5) and not bucket.take(0.5)
    book = GuestBook(burst=2, per_s=1, guests_max=10)
    assert book.admits(b"x", 0.0) and book.admits(b"x", 0.0) and not book.admits(b"x", 0.0)
    assert sum(book.admits(b"%d" % i, 0.0) for i in range(100)) == 6, "all together get four times what one gets"
    assert book.admits(b"x", 10.0)
