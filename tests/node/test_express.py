"""Expert calls on the express: two engines over real sockets, and peers that do not behave."""

import dataclasses
import math
import time
from contextlib import asynccontextmanager

import pytest
import torch
import trio
import trio.testing

from meshmoe.core.endpoints import Lane
from meshmoe.core.errors import ExpertUnavailableError
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.engine.engine import open_engine
from meshmoe.engine.model import load_moe_model
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.remote import LayerCall
from meshmoe.engine.request import GenerationStats
from meshmoe.engine.schedule import Priority
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.loading import load_expert
from meshmoe.model.tiny import make_tiny_checkpoint
from meshmoe.node.calls import CallTable
from meshmoe.node.expert_client import CallPatience, ExpertClient
from meshmoe.node.expert_server import ExpertServer
from meshmoe.node.express import Express
from meshmoe.node.messenger import Messenger
from meshmoe.node.vigil import Vigil
from meshmoe.transport.zmq_transport import open_zmq_transport
from meshmoe.wire.messages import CallCancel, CallFailed, ExpertCall, ExpertReply
from meshmoe.wire.tensors import pack_tensor
from tests.node.support import GREEDY, open_test_mesh, written, written_alone

ASKER, HOLDER, SPARE = NodeId("asker"), NodeId("holder"), NodeId("spare")
ROW = torch.ones(1, 64)


class Knowledge:
    """Of the mesh: who holds everything, the first being the nearest."""

    def __init__(self, *holders):
        self.of, self.version = holders, 0

    def holders(self, expert):
        return self.of

    def call_time_s(self, peer, payload_bytes):
        return 0.001 * (1 + self.of.index(peer))

    async def wait_changed(self):
        await trio.sleep(0.05)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    opened = Checkpoint.open(make_tiny_checkpoint("qwen3_moe", tmp_path_factory.mktemp("tiny"), dtype=torch.float32))
    load_moe_model(opened)  # compiles kernels, the first time; tests have deadlines
    return opened


class Side:
    """A node as far as expert calls go."""

    def __init__(self, engine, client, express):
        self.engine, self.client, self.express = engine, client, express
        self.stats = GenerationStats()

    async def ask(self, experts=(0, 1), rows=ROW, decode=True, take=None):
        """One layer call from a job, as a forward pass makes it."""
        call = LayerCall(1, rows, {expert: list(range(len(rows))) for expert in experts}, decode, self.stats, take)

        def job_body(job):
            job.checkpoint()
            return job.ask(self.client, call).wait()

        async with trio.open_nursery() as nursery:
            try:
                return await self.engine.compute.run(Priority.DECODE, job_body, nursery=nursery)
            except ExpertUnavailableError as error:
                failure = error  # past the nursery, which would put it into a group
        raise failure


@asynccontextmanager
async def open_side(name, checkpoint, transport, knowledge, *, full, patience=None):
    model, pool = load_moe_model(checkpoint), ExpertPool(1 << 40)
    for expert in model.experts if full else ():
        pool.add(expert, load_expert(checkpoint, expert, model.dtype))
    messenger = Messenger(transport)
    client = ExpertClient(messenger, CallTable(), knowledge, patience)
    client.resident = pool.__contains__
    server = ExpertServer(messenger, knowledge, name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(messenger.run)
        nursery.start_soon(server.run)
        async with open_engine(model, pool, client) as engine:
            await trio.testing.wait_all_tasks_blocked()
            server.engine = engine
            await messenger.stop_receiving(Lane.DATA)
            express = Express(transport.open_direct(Lane.DATA), engine, knowledge, client, server, messenger, Vigil())
            engine.compute.attach(express)
            yield Side(engine, client, express)
        nursery.cancel_scope.cancel()


class Odd:
    """A peer whose answer to a call is what the test says."""

    def __init__(self, transport, answer):
        self.calls, self.cancelled = [], trio.Event()
        self._messenger, self._answer = Messenger(transport), answer
        self._messenger.on(ExpertCall, self._called)
        self._messenger.on(CallCancel, lambda parcel, decoded: self.cancelled.set())

    async def run(self):
        await self._messenger.run()

    def _called(self, parcel, decoded):
        self.calls.append(decoded.message)
        answer = self._answer(decoded.message)
        if answer is not None:
            message, tensor = answer
            self._messenger.post(parcel.sender, Lane.DATA, message, tensor=tensor)


@asynccontextmanager
async def open_case(checkpoint, holders, answer=None, patience=None):
    """An asker; the full holder; and, where `answer` is given, an odd peer named SPARE."""
    async with (
        open_zmq_transport(ASKER, 1) as a,
        open_zmq_transport(HOLDER, 1) as b,
        open_zmq_transport(SPARE, 1) as c,
        trio.open_nursery() as nursery,
    ):
        for name, transport in ((HOLDER, b), (SPARE, c)):
            a.connect(name, transport.endpoints)
            transport.connect(ASKER, a.endpoints)
        odd = Odd(c, answer)
        nursery.start_soon(odd.run)
        knowledge = Knowledge(*holders)
        async with (
            open_side(ASKER, checkpoint, a, knowledge, full=False, patience=patience) as asker,
            open_side(HOLDER, checkpoint, b, knowledge, full=True) as holder,
        ):
            while not (a.connected(HOLDER, Lane.DATA) and b.connected(ASKER, Lane.DATA)):
                await trio.sleep(0.01)
            while not (a.connected(SPARE, Lane.DATA) and c.connected(ASKER, Lane.DATA)):
                await trio.sleep(0.01)
            yield asker, holder, odd
        nursery.cancel_scope.cancel()


def run(case, *args, **options):
    async def main():
        with trio.fail_after(60):
            async with open_case(*args, **options) as (asker, holder, odd):
                await case(asker, holder, odd)

    trio.run(main)


async def right(side, experts=(0, 1), rows=ROW):
    asked = [(expert, list(range(len(rows)))) for expert in experts]
    return await side.engine.compute_experts(1, asked, rows, decode=True, deadline=math.inf)


@pytest.mark.parametrize("decode", [True, False])
def test_answers_are_those_of_the_holder_and_trio_has_no_part_in_them(checkpoint, decode):
    async def case(asker, holder, odd):
        rows = torch.randn(3, 64)
        for _ in range(5):
            outputs = await asker.ask(rows=rows, decode=decode)
            assert torch.equal(torch.cat([outputs[0], outputs[1]]), await right(holder, rows=rows))
        assert asker.express.counts == {"sent": 5, "answered": 5}
        assert holder.express.counts == {"served": 5}
        assert asker.stats.retries == 0
        assert asker.stats.sent_bytes > 5 * rows.nbytes
        assert asker.client.calls_by_peer == {HOLDER: 30}

    run(case, checkpoint, [HOLDER])


def test_decode_calls_of_a_layer_that_have_come_meanwhile_are_computed_together(checkpoint):
    async def case(asker, holder, odd):
        questions = {(0, 1): torch.randn(3, 64), (1, 2): torch.randn(2, 64)}
        answers = {}

        async def ask(experts):
            answers[experts] = await asker.ask(experts=experts, rows=questions[experts])

        busy = trio.Event()

        def occupy(job):
            job.post(busy.set)
            until_s = time.monotonic() + 30
            while asker.express.counts["sent"] < len(questions) and time.monotonic() < until_s:
                time.sleep(0.01)
            time.sleep(0.3)  # for them to arrive

        async with trio.open_nursery() as nursery:
            nursery.start_soon(holder.engine.compute.run, Priority.DECODE, occupy)
            await busy.wait()
            for experts in questions:
                nursery.start_soon(ask, experts)
        assert holder.express.counts == {"served": 2, "together": 2}
        for experts, rows in questions.items():
            outputs = torch.cat([answers[experts][expert] for expert in experts])
            assert torch.equal(outputs, await right(holder, experts, rows))

    run(case, checkpoint, [HOLDER])


@pytest.mark.parametrize("takes", [True, False])
def test_answers_are_offered_to_who_waits_and_are_in_the_result_if_not_taken(checkpoint, takes):
    async def case(asker, holder, odd):
        offered = []

        def take(experts, data):
            offered.append((list(experts), bytes(data)))
            return takes

        outputs, expected = await asker.ask(take=take), await right(holder)
        assert offered == [([0, 1], bytes(pack_tensor(expected).data))]
        if takes:
            assert outputs == {}
        else:
            assert torch.equal(torch.cat([outputs[0], outputs[1]]), expected)

    run(case, checkpoint, [HOLDER])


def test_an_answer_of_the_wrong_shape_is_not_offered(checkpoint):
    async def case(asker, holder, odd):
        offered = []
        outputs = await asker.ask(take=lambda experts, data: offered.append(experts))
        assert torch.equal(torch.cat([outputs[0], outputs[1]]), await right(holder))
        assert odd.calls
        assert not offered

    run(case, checkpoint, [SPARE, HOLDER], lambda call: (ExpertReply(id=call.id), pack_tensor(torch.zeros(2, 32))))


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (lambda call: None, "call_timeouts"),
        (lambda call: (CallFailed(id=call.id, reason="busy"), None), ""),
        (lambda call: (ExpertReply(id=call.id), None), "bad_reply"),
        (lambda call: (ExpertReply(id=call.id), pack_tensor(torch.zeros(2, 32))), "bad_reply"),
        (lambda call: (ExpertReply(id=call.id), pack_tensor(torch.full((2, 64), math.nan))), "bad_reply"),
    ],
    ids=["silent", "busy", "nothing", "wrong shape", "no numbers"],
)
def test_what_goes_wrong_is_put_right_by_another_holder(checkpoint, answer, fault):
    async def case(asker, holder, odd):
        outputs = await asker.ask()
        assert torch.equal(torch.cat([outputs[0], outputs[1]]), await right(holder))
        assert odd.calls
        assert asker.stats.retries >= 1
        if fault:
            assert asker.client._messenger.faults[fault] >= 1

    patience = dataclasses.replace(CallPatience(), attempt_s=0.3, backoff_s=0.05)
    run(case, checkpoint, [SPARE, HOLDER], answer, patience)


def test_a_cancelled_request_is_cancelled_at_the_peer(checkpoint):
    async def case(asker, holder, odd):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asker.ask)
            with trio.fail_after(30):
                while not odd.calls:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        with trio.fail_after(30):
            await odd.cancelled.wait()
        assert not asker.express.client.asked

    run(case, checkpoint, [SPARE], lambda call: None)


def test_a_peer_that_goes_fails_its_calls_at_once(checkpoint):
    async def case(asker, holder, odd):
        began_s = time.monotonic()

        async def go():
            while not odd.calls:
                await trio.sleep(0.01)
            asker.express.peer_gone(SPARE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go)
            outputs = await asker.ask()
        assert time.monotonic() - began_s < 25
        assert torch.equal(torch.cat([outputs[0], outputs[1]]), await right(holder))

    # The holder that has gone stays listed first, so it is asked again; what counts is that nobody waits for long.
    patience = CallPatience(attempt_s=30.0)
    calls = []

    def only_the_first_is_unanswered(call):
        calls.append(call)
        return None if len(calls) == 1 else (CallFailed(id=call.id, reason="stopping"), None)

    run(case, checkpoint, [SPARE, HOLDER], only_the_first_is_unanswered, patience)


def test_experts_that_are_not_there_are_told_by_the_usual_way(checkpoint):
    async def case(asker, holder, odd):
        holder.engine.pool.evict(ExpertId(1, 0))
        with pytest.raises(ExpertUnavailableError, match="1/0"):
            await asker.ask()
        assert holder.express.counts["handed_over"] >= 1

    run(case, checkpoint, [HOLDER], patience=CallPatience(total_s=1.0, backoff_s=0.05))


def test_without_anybody_the_usual_way_says_so(checkpoint):
    async def case(asker, holder, odd):
        with pytest.raises(ExpertUnavailableError, match="no reachable node"):
            await asker.ask()

    run(case, checkpoint, [], patience=CallPatience(total_s=0.3))


def test_whole_nodes_write_what_one_alone_writes(tmp_path):
    directory = make_tiny_checkpoint("qwen3_moe", tmp_path / "model", dtype=torch.float32)
    prompt = (5, 17, 40, 99)

    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            one = await mesh.add("one", directory, 0.6)
            await mesh.add("two", directory, 0.6)
            await mesh.add("three", directory, 0.6, express=False)  # the usual way, among them
            await mesh.settle()
            tokens = await written(one, prompt, GREEDY)
            assert one.parts.express.counts["answered"] > 0
            assert mesh.nodes[2].parts.express is None
            return tokens

    assert trio.run(main) == trio.run(written_alone, directory, [prompt], [GREEDY])[0]
