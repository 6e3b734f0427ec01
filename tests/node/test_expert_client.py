"""Late and missing peers, as the caller of experts meets them: in virtual time, over the in-memory transport."""

import functools
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import torch
import trio
import trio.testing

from meshmoe.core.endpoints import Lane
from meshmoe.core.errors import ExpertUnavailableError
from meshmoe.core.ids import NodeId
from meshmoe.engine.remote import LayerCall
from meshmoe.engine.request import GenerationStats
from meshmoe.node.calls import CallTable
from meshmoe.node.expert_client import CallPatience, ExpertClient
from meshmoe.node.hedging import BURST_MAX, SHARE_MAX, Hedging
from meshmoe.node.messenger import Messenger
from meshmoe.transport.memory import MemoryHub
from meshmoe.wire.messages import CallCancel, CallFailed, ExpertCall, ExpertReply
from meshmoe.wire.tensors import pack_tensor, unpack_tensor

SLOW, FAST = NodeId("a-slow"), NodeId("b-fast")


class Peer:
    """Answers calls after `delay_s` with twice the hidden states; or not at all, or with a refusal."""

    def __init__(self, messenger, nursery):
        self.delay_s = 0.001
        self.silent = self.busy = False
        self.calls = self.cancels = 0
        self._messenger, self._nursery = messenger, nursery
        messenger.on(ExpertCall, self._called)
        messenger.on(CallCancel, self._cancelled)

    def _called(self, parcel, decoded):
        self.calls += 1
        if not self.silent:
            self._nursery.start_soon(self._answer, parcel.sender, decoded)

    def _cancelled(self, parcel, decoded):
        self.cancels += 1

    async def _answer(self, sender, decoded):
        await trio.sleep(self.delay_s)
        if self.busy:
            self._messenger.try_post(sender, Lane.DATA, CallFailed(id=decoded.message.id, reason="busy"))
            return
        hidden = unpack_tensor(decoded.tensor)
        outputs = torch.cat([2 * hidden for _ in decoded.message.experts])
        self._messenger.post(sender, Lane.DATA, ExpertReply(id=decoded.message.id), tensor=pack_tensor(outputs))


class Knowledge:
    def __init__(self):
        self.of, self.version = (SLOW, FAST), 0

    def holders(self, expert):
        return self.of

    def call_time_s(self, peer, payload_bytes):
        return 0.001 if peer == SLOW else 0.002  # the slow one is asked first

    async def wait_changed(self):
        await trio.sleep_forever()


class Bench:
    """A client and two peers."""

    def __init__(self, client, knowledge, peers):
        self.client, self.knowledge = client, knowledge
        self.slow, self.fast = peers
        self.stats = GenerationStats()

    async def ask(self, *, decode=True):
        hidden = torch.arange(4.0).reshape(1, 4)
        call = LayerCall(0, hidden, {0: [0], 1: [0]}, decode, self.stats)
        began = trio.current_time()
        outputs = await self.client.compute(call)
        assert all(torch.equal(out, 2 * hidden) for out in outputs.values()) and len(outputs) == 2
        return trio.current_time() - began


@asynccontextmanager
async def open_bench(*, hedge=False, patience=None):
    hub, knowledge = MemoryHub(), Knowledge()
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        names = (NodeId("me"), SLOW, FAST)
        transports = [await stack.enter_async_context(hub.attach(name, 1)) for name in names]
        for one in transports:
            for name, other in zip(names, transports, strict=True):
                if one is not other:
                    one.connect(name, other.endpoints)
        mine, *theirs = [Messenger(transport) for transport in transports]
        for messenger in (mine, *theirs):
            nursery.start_soon(messenger.run)
        client = ExpertClient(mine, CallTable(), knowledge, patience, hedge=hedge)
        yield Bench(client, knowledge, [Peer(messenger, nursery) for messenger in theirs])
        nursery.cancel_scope.cancel()


def virtual(test):
    @functools.wraps(test)
    def run():
        trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))

    return run


@virtual
async def test_a_late_call_is_asked_elsewhere_too_and_the_first_answer_counts():
    async with open_bench(hedge=True) as bench:
        for _ in range(40):
            await bench.ask()
        assert bench.fast.calls == 0
        bench.slow.delay_s = 1.0
        assert await bench.ask() < 0.02
        assert (bench.client.hedging.calls, bench.client.hedging.won) == (1, 1)
        await trio.sleep(0.01)
        assert bench.slow.cancels == 1


@virtual
async def test_without_the_flag_a_late_call_is_waited_for():
    async with open_bench() as bench:
        for _ in range(40):
            await bench.ask()
        bench.slow.delay_s = 0.2
        assert await bench.ask() == pytest.approx(0.2, abs=0.01)
        assert bench.fast.calls == 0


@virtual
async def test_the_first_one_may_still_win():
    async with open_bench(hedge=True) as bench:
        for _ in range(40):
            await bench.ask()
        bench.slow.delay_s, bench.fast.delay_s = 0.02, 5.0
        assert await bench.ask() == pytest.approx(0.02, abs=0.005)
        assert (bench.client.hedging.calls, bench.client.hedging.won) == (1, 0)
        await trio.sleep(0.01)
        assert bench.fast.cancels == 1


@virtual
async def test_a_second_holder_that_refuses_does_not_end_the_first_call():
    async with open_bench(hedge=True) as bench:
        for _ in range(40):
            await bench.ask()
        bench.slow.delay_s, bench.fast.busy = 0.1, True
        assert await bench.ask() == pytest.approx(0.1, abs=0.01)
        assert bench.stats.retries == 0


def test_second_calls_are_a_twentieth_of_all_but_for_a_few_saved_up():
    hedging = Hedging(enabled=True)
    made = 0
    for _ in range(1000):
        hedging.earn()
        made += hedging.spend()
    assert made <= 1000 * SHARE_MAX + BURST_MAX
    assert made >= 1000 * SHARE_MAX - 1
    assert not Hedging(enabled=False).spend()


@virtual
async def test_patience_is_of_the_whole_request():
    async with open_bench(patience=CallPatience(attempt_s=1.0, total_s=10.0)) as bench:
        bench.slow.silent = bench.fast.silent = True
        began = trio.current_time()

        async def answer_again_later():
            await trio.sleep(6.5)
            bench.slow.silent = bench.fast.silent = False

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_again_later)
            await bench.ask()  # spends 6 to 8 of 10 seconds, and is served
        assert 6.0 < bench.stats.stalled_s < 9.0
        assert await bench.ask() < 0.1, "what is answered at once needs no patience"
        bench.slow.silent = bench.fast.silent = True
        with pytest.raises(ExpertUnavailableError, match=r"0/0, 0/1.* has waited 1[01] s in all"):
            await bench.ask()
        assert trio.current_time() - began < 12.0
        with pytest.raises(ExpertUnavailableError):
            await bench.ask()  # a first attempt, and no more
        assert trio.current_time() - began < 14.0


@virtual
async def test_an_expert_that_nobody_holds_is_waited_for_no_longer_than_the_request_may():
    async with open_bench(patience=CallPatience(total_s=5.0)) as bench:
        bench.knowledge.of = ()
        began = trio.current_time()
        with pytest.raises(ExpertUnavailableError, match="no node holds it"):
            await bench.ask()
        assert 4.9 < trio.current_time() - began < 6.1
