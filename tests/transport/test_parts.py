"""The small parts: identities, counters, complaints, queue limits, and what only the in-memory hub has."""

import logging

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from meshmoe.core.endpoints import Lane
from meshmoe.core.errors import ConfigError
from meshmoe.core.ids import NodeId
from meshmoe.transport.base import LinkStats
from meshmoe.transport.complaints import PERIOD_S, Complaints
from meshmoe.transport.identity import Identity, identity_bytes, parse_identity
from meshmoe.transport.ledger import Ledger
from meshmoe.transport.limits import QueueLimit
from meshmoe.transport.memory import MemoryHub
from meshmoe.transport.queue import ParcelQueue, QueuedParcel
from tests.transport.support import A, B, contents, trio_test

NODES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True).map(NodeId)


@given(st.sampled_from(list(Lane)), st.integers(0, (1 << 63) - 1), st.integers(0, (1 << 63) - 1), NODES)
def test_identities_roundtrip(lane, generation, connection, node):
    identity = Identity(lane, generation, connection, node)
    routing_id = identity_bytes(identity)
    assert len(routing_id) <= 255
    assert routing_id[0] != 0
    assert parse_identity(routing_id) == identity


@given(st.binary(max_size=300))
def test_any_other_bytes_are_no_identity(routing_id):
    identity = parse_identity(routing_id)
    assert identity is None or identity_bytes(identity) == routing_id


def test_the_ledger_is_bounded():
    ledger = Ledger(peers_max=2)
    for name in ("a", "b", "c", "d"):
        ledger.of(NodeId(name)).sent_parcels += 1
    assert ledger.snapshot(NodeId("a")) == LinkStats(sent_parcels=1)
    assert ledger.snapshot(NodeId("c")) == LinkStats()
    snapshot = ledger.snapshot(NodeId("a"))
    ledger.of(NodeId("a")).sent_parcels += 1
    assert snapshot.sent_parcels == 1


def test_complaints_are_counted_and_seldom_logged(caplog):
    async def main():
        complaints = Complaints(logging.getLogger("test"))
        for _ in range(50):
            complaints.complain("bad")
        await trio.sleep(PERIOD_S + 1)
        complaints.complain("bad again")
        assert complaints.count == 51

    with caplog.at_level(logging.WARNING):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert [record.getMessage() for record in caplog.records] == ["bad", "bad again (49 more in the last while)"]


@given(st.lists(st.one_of(st.integers(0, 60), st.none()), max_size=60))
def test_a_queue_never_holds_more_than_its_limits(operations):
    async def main():
        queue = ParcelQueue(QueueLimit(5, 100))
        held = []
        for operation in operations:
            if operation is None:
                if held:
                    assert queue.pop().size_bytes == held.pop(0)
            elif queue.offer(QueuedParcel([b""], operation)):
                held.append(operation)
                assert len(held) <= 5
                assert sum(held) <= 100
            else:
                assert len(held) == 5 or sum(held) + operation > 100
            assert len(queue) == len(held)

    trio.run(main)


@trio_test
async def test_an_oversized_parcel_goes_alone():
    queue = ParcelQueue(QueueLimit(5, 100))
    assert queue.offer(QueuedParcel([b""], 500))
    assert not queue.offer(QueuedParcel([b""], 0))
    queue.pop()
    assert queue.offer(QueuedParcel([b""], 0))


@trio_test
async def test_a_woken_writer_that_is_cancelled_leaves_its_turn_to_the_next():
    queue = ParcelQueue(QueueLimit(1, 100))
    queue.offer(QueuedParcel([b""], 1))
    got = []

    async def write(name, scope):
        with scope:
            await queue.wait_for_room(1)
            assert queue.offer(QueuedParcel([b""], 1))
            got.append(name)

    first, second = trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, "first", first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(write, "second", second)
        await trio.testing.wait_all_tasks_blocked()
        queue.pop()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        if got == ["first"]:  # it had its turn before the cancellation came
            queue.pop()
    assert got[-1] == "second"


@trio_test
async def test_hub_ports_are_taken_once():
    hub = MemoryHub()
    async with hub.attach(A, 1, port=5000):
        with pytest.raises(ConfigError, match="port 5001"):
            async with hub.attach(B, 1, port=5001):
                pass
        async with hub.attach(B, 1, port=5003) as b:
            assert b.endpoints.bulk_port == 5005
    async with hub.attach(B, 1, port=5001):
        pass


@trio_test
async def test_hub_copies_what_is_sent():
    hub = MemoryHub()
    async with hub.attach(A, 1) as a, hub.attach(B, 1) as b:
        a.connect(B, b.endpoints)
        buffer = bytearray(b"before")
        a.post(B, Lane.DATA, [buffer])
        buffer[:] = b"after!"
        assert contents(await b.receive(Lane.DATA)) == [b"before"]


@trio_test
async def test_hub_lanes_do_not_mix():
    hub = MemoryHub()
    async with hub.attach(A, 1) as a, hub.attach(B, 1, port=5000) as b:
        wrong = type(b.endpoints)("memory", 5001, 5001, 5002)
        a.connect(B, wrong)
        a.post(B, Lane.CONTROL, [b"on the data port"])
        a.post(B, Lane.DATA, [b"fine"])
        assert contents(await b.receive(Lane.DATA)) == [b"fine"]
        assert b.bad_messages == 1
