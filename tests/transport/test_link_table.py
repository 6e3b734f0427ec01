"""What compiled code sees of an emulated link is what the model computes with, whatever happens to the link."""

import math
import random
import time
from contextlib import suppress

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from meshmoe.core.endpoints import Lane
from meshmoe.core.links import LinkShape
from meshmoe.transport.base import QueueFullError, UnreachableError
from meshmoe.transport.impaired import BREAK_AFTER_S, open_impaired_transport
from meshmoe.transport.limits import QueueLimit
from meshmoe.transport.link_model import LinkModel
from meshmoe.transport.link_table import LinkTable
from meshmoe.transport.memory import MemoryHub
from meshmoe.transport.native import functions
from meshmoe.transport.native_tables import LINK_WORDS, Link, Port
from meshmoe.transport.queue import ParcelQueue, QueuedParcel
from tests.transport.native_driver import Receiver, pass_alone, send, words_at
from tests.transport.support import A, B, C, contents, trio_test, until
from tests.transport.test_native import open_pair

SHAPE = LinkShape(rtt_s=0.010, rate_bytes_per_s=1e6)
SHAPES = (
    SHAPE,
    LinkShape(rtt_s=0.002, rate_bytes_per_s=math.inf),
    LinkShape(rtt_s=0.01, rate_bytes_per_s=1e5, loss=0.1),
)
needs_native = pytest.mark.skipif(functions() is None, reason="libzmq's functions cannot be had here")


def is_open(table):
    return words_at(table.address, LINK_WORDS)[Link.OPEN] == 1


class Pair:
    """A link, and one like it whose data lane is served by its table."""

    def __init__(self, ahead_s=0.0):
        self.now_s, self.queues, self.models = 0.0, [], []
        for table in (LinkTable(), LinkTable(ahead_s)):
            queues = {lane: ParcelQueue(QueueLimit(1000, 1 << 40)) for lane in Lane}
            self.queues.append(queues)
            self.models.append(LinkModel(SHAPE, queues, random.Random(1), 0.0, table))
        self.ahead_s = ahead_s

    def on_both(self, change):
        results = [change(model, queues) for model, queues in zip(self.models, self.queues, strict=True)]
        assert results[0] == pytest.approx(results[1], abs=1e-9), "both links are alike"
        return results[0]

    def advance(self, pause_s):
        self.now_s += pause_s
        self.on_both(lambda model, queues: len(model.advance(self.now_s)))

    def put(self, lane, size_bytes):
        self.on_both(lambda model, queues: queues[lane].offer(QueuedParcel([b""], size_bytes)))

    def pass_alone(self, size_bytes):
        arrival_s = self.models[0].pass_alone(Lane.DATA, size_bytes, self.now_s)
        by_table_s = pass_alone(self.models[1].table.address, size_bytes, self.now_s - self.ahead_s)
        assert (by_table_s is None) == (arrival_s is None)
        if arrival_s is not None:
            assert by_table_s + self.ahead_s == pytest.approx(arrival_s, abs=1e-9)

    def check(self):
        model = self.models[0]
        free_s = max(self.now_s, model.settled_s)
        assert is_open(model.table) == is_open(self.models[1].table)
        # A parcel of no bytes takes no time, so asking changes nothing but the last arrival, which both have alike.
        passes = self.on_both(lambda model, queues: model.pass_alone(Lane.DATA, 0, free_s)) is not None
        assert is_open(model.table) == (passes and not model.shape.loss)


changes = st.one_of(
    st.tuples(st.just("advance"), st.sampled_from([0.0, 0.0005, 0.004, 0.05])),
    st.tuples(st.just("put"), st.sampled_from(list(Lane)), st.integers(0, 20_000)),
    st.tuples(st.just("hold"), st.sampled_from(list(Lane)), st.booleans()),
    st.tuples(st.just("block"), st.booleans()),
    st.tuples(st.just("clear"), st.sampled_from(list(Lane))),
    st.tuples(st.just("pass"), st.integers(0, 3000)),
)


@given(st.lists(changes, max_size=60), st.sampled_from([0.0, 0.125, -7.0]))
def test_whatever_happens_the_table_says_whether_a_parcel_passes_and_gives_the_same_times(happens, ahead_s):
    pair = Pair(ahead_s)
    for what, *arguments in happens:
        if what == "advance":
            pair.advance(*arguments)
        elif what == "put":
            pair.put(*arguments)
        elif what == "hold":
            pair.on_both(lambda model, queues, to=tuple(arguments): model.hold(*to))
        elif what == "block":
            pair.on_both(lambda model, queues, to=arguments[0]: setattr(model, "blocked", to))
        elif what == "clear":
            pair.on_both(lambda model, queues, of=arguments[0]: queues[of].clear() + model.forget_lane(of))
        else:
            pair.pass_alone(*arguments)
        pair.check()
    assert pair.models[1].settled_s == pytest.approx(pair.models[0].settled_s, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_changed_shape_is_in_the_table_and_one_with_losses_closes_it(shape):
    pair = Pair()
    pair.on_both(lambda model, queues: setattr(model, "shape", shape))
    reals = pair.models[0].table._reals
    assert (reals[Link.DELAY_S], reals[Link.JITTER_S], reals[Link.RATE]) == (
        shape.rtt_s / 2,
        shape.jitter_s,
        shape.rate_bytes_per_s,
    )
    assert is_open(pair.models[0].table) == (not shape.loss)
    assert pair.models[0].pass_alone(Lane.DATA, 1, 0.0) is not None


def test_what_passes_by_the_table_holds_up_what_queues_and_the_other_way_round():
    pair = Pair()
    pair.pass_alone(1000)
    pair.put(Lane.DATA, 500)
    pair.advance(0.0014)
    pair.on_both(lambda model, queues: len(queues[Lane.DATA]))
    pair.advance(0.0002)
    assert not len(pair.queues[1][Lane.DATA]), "it has left after 1.5 ms"
    assert pair.models[1].next_event_s() == pytest.approx(0.0065)
    pair.pass_alone(0)  # never before its predecessor on the lane


def open_in(transport, peer):
    return is_open(transport._links[peer].table)


@trio_test
async def test_the_table_follows_partitions_queues_stalls_and_lives():
    hub = MemoryHub()
    async with (
        hub.attach(A, 1) as inner,
        hub.attach(B, 1) as b,
        open_impaired_transport(inner, {B: SHAPE}, 1) as a,
    ):
        a.connect(B, b.endpoints)
        table = a._links[B].table
        assert open_in(a, B) and table.life == 0
        a.block(B)
        assert not open_in(a, B)
        await trio.sleep(BREAK_AFTER_S + 0.1)
        assert not open_in(a, B) and table.life == 1, "the partition has broken the connection"
        a.unblock(B)
        assert open_in(a, B)
        a.post(B, Lane.BULK, [bytes(10_000)])
        assert not open_in(a, B)
        await b.receive(Lane.BULK)
        await until(lambda: open_in(a, B))
        a.disconnect(B)
        a.connect(B, b.endpoints)
        assert open_in(a, B) and table.life == 2

        a.reshape(B, LinkShape(rtt_s=0.0, rate_bytes_per_s=math.inf))
        sent = 0
        with pytest.raises(QueueFullError):
            while True:
                a.post(B, Lane.DATA, [b"%d" % sent, bytes(1 << 20)])
                sent += 1
                await trio.sleep(0.001)
        assert a._links[B].stalled[Lane.DATA] and not open_in(a, B), "the peer does not read"
        for number in range(sent):
            assert contents(await b.receive(Lane.DATA))[0] == b"%d" % number
        await until(lambda: open_in(a, B))
        assert not a._links[B].stalled[Lane.DATA]

        words_at(table.address, LINK_WORDS)[Link.DROPPED] = 3
        assert a.stats(B).dropped_parcels == 3
    assert not open_in(a, B), "closed"


@trio_test
async def test_a_lane_that_stalls_again_as_it_catches_up_stays_closed():
    """What arrives while the last stalled parcel leaves may stall in its turn."""

    class Full:
        """An inner transport that takes a parcel only when it is waited for."""

        def __init__(self, inner):
            self._inner = inner
            self.room = trio.Semaphore(0)

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def post(self, peer, lane, frames):
            raise QueueFullError("full")

        async def send(self, peer, lane, frames):
            await self.room.acquire()

    async with MemoryHub().attach(A, 1) as inner, MemoryHub().attach(B, 1) as b:
        full = Full(inner)
        async with open_impaired_transport(full, {B: SHAPE}, 1) as a:
            a.connect(B, b.endpoints)
            link = a._links[B]
            a.post(B, Lane.DATA, [b"first"])
            await until(lambda: len(link.stalled[Lane.DATA]) == 1)
            # On its way since before the lane was held, and due just as the first has left.
            link.model._data.in_flight.append((trio.current_time(), QueuedParcel([b"second"], 6)))
            full.room.release()
            await until(lambda: [parcel.frames for parcel in link.stalled[Lane.DATA]] == [[b"second"]])
            await trio.testing.wait_all_tasks_blocked()
            assert not open_in(a, B)
            full.room.release()
            await until(lambda: open_in(a, B))


@needs_native
@trio_test
async def test_a_connections_table_tells_of_the_emulated_link_before_it_whenever_that_comes():
    async with open_pair() as (inner, b), open_impaired_transport(inner, {B: SHAPE}, 1) as a:
        lane = a.open_direct(Lane.DATA)
        a.connect(B, b.endpoints)
        port, link = lane.port(B), a._links[B].table.address
        assert words_at(port)[Port.LINK] == link
        a.reshape(B, SHAPES[1])
        a.disconnect(B)
        assert lane.port(B) == 0
        a.connect(B, b.endpoints)
        assert lane.port(B) == port and words_at(port)[Port.LINK] == link
        a.connect(C, b.endpoints)
        other = lane.port(C)
        assert other and words_at(other)[Port.LINK] == 0
        a.disconnect(C)
        a.reshape(C, SHAPE)
        assert words_at(other)[Port.LINK] == a._links[C].table.address, "somebody may hold it"
        assert a.open_direct(Lane.BULK).port(B) == 0, "tables are of data lanes"


@needs_native
@trio_test
async def test_what_compiled_code_sends_over_an_emulated_link_keeps_its_times_beside_what_python_sends():
    shape = LinkShape(rtt_s=0.02, rate_bytes_per_s=1e8, jitter_s=0.001)
    async with open_pair() as (inner, b), open_impaired_transport(inner, {B: shape}, 1) as a:
        lane, there = a.open_direct(Lane.DATA), b.open_direct(Lane.DATA)
        a.connect(B, b.endpoints)

        def talk():
            receiver = Receiver(there)
            port = lane.port(B)
            link = words_at(port)[Port.LINK]
            reals = a._links[B].table._reals
            for number in range(10):
                now_s = time.perf_counter()
                lane.send(B, [b"python %d" % number, bytes(50_000)])
                by_python_s = reals[Link.LAST_S]
                assert 0.0099 < by_python_s - now_s < 0.06, "it is the monotonic clock"
                arrival_s = pass_alone(link, 1000, time.perf_counter(), chance=0.5)
                assert by_python_s <= arrival_s < by_python_s + 0.06
                while time.perf_counter() < arrival_s:
                    assert lane.due_s() <= 0.06 or not lane._under_way
                assert math.isinf(lane.due_s())
                assert send(port, [b"compiled %d" % number])
                assert contents(receiver.receive().parcel)[0] == b"python %d" % number
                assert contents(receiver.receive().parcel)[0] == b"compiled %d" % number

        await trio.to_thread.run_sync(talk)


@needs_native
@trio_test
async def test_links_change_while_another_thread_uses_their_tables():
    """No torn state: when all is quiet again the table is open, and everything has been counted."""
    async with open_pair() as (inner, b), open_impaired_transport(inner, {B: SHAPES[1]}, 1) as a:
        lane, there = a.open_direct(Lane.DATA), b.open_direct(Lane.DATA)
        a.connect(B, b.endpoints)
        stop = []

        def use():
            chance = random.Random(2)
            while not stop:
                port = lane.port(B)
                link = words_at(port)[Port.LINK] if port else 0
                if link:
                    pass_alone(link, chance.randrange(100), time.perf_counter())
                with suppress(QueueFullError, UnreachableError):
                    lane.send(B, [b"x"])
                lane.wait(0.0005)
                while there.receive() is not None:
                    pass

        chance = random.Random(3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, use)
            for _ in range(300):
                match chance.randrange(6):
                    case 0:
                        a.block(B)
                    case 1:
                        a.unblock(B)
                    case 2:
                        a.reshape(B, chance.choice(SHAPES))
                    case 3:
                        a.disconnect(B)
                    case 4:
                        a.connect(B, b.endpoints)
                    case 5:
                        with suppress(QueueFullError, UnreachableError):
                            a.post(B, chance.choice(list(Lane)), [b"y"])
                await trio.sleep(0.001)
                link = a._links[B]
                with a._lock:
                    waiting = any(len(queue) for queue in link.queues.values())
                    expected = not (waiting or link.model.blocked or link.model.shape.loss)
                    if not link.model._data.held:
                        assert open_in(a, B) == expected
            a.reshape(B, SHAPES[1])
            a.unblock(B)
            a.connect(B, b.endpoints)
            await until(lambda: open_in(a, B))
            stop.append(True)


def test_order_holds_to_the_last_bit_between_clocks_that_differ():
    shape = LinkShape(rtt_s=0.01, rate_bytes_per_s=1e9, jitter_s=0.05)
    for seed in range(50):
        chance = random.Random(seed)
        queues = {lane: ParcelQueue(QueueLimit(1000, 1 << 40)) for lane in Lane}
        table = LinkTable(chance.uniform(-1e6, 1e6))
        model = LinkModel(shape, queues, random.Random(seed), 0.0, table)
        arrivals = [model.pass_alone(Lane.DATA, 100, 0.0001 * number) for number in range(50)]
        assert arrivals == sorted(arrivals)
