"""Expert calls on the express: two engines over real sockets, and peers that do not behave."""

import dataclasses
import math
import time

import pytest
import torch
import trio

from meshmoe.core.errors import ExpertUnavailableError
from meshmoe.core.ids import ExpertId
from meshmoe.engine.schedule import Priority
from meshmoe.model.tiny import make_tiny_checkpoint
from meshmoe.node.expert_client import CallPatience
from meshmoe.wire.codec import CODEC
from meshmoe.wire.messages import CallFailed, ExpertReply
from meshmoe.wire.tensors import pack_tensor
from tests.node.express_sides import HOLDER, ROW, SPARE, open_tiny, run_case
from tests.node.support import GREEDY, open_test_mesh, written, written_alone


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
    return open_tiny(tmp_path_factory.mktemp("tiny"))


def run(case, checkpoint, holders, answer=None, patience=None):
    """An asker with no expert; the full holder; and an odd peer that answers a call by a message and a tensor."""

    def frames(decoded):
        message_and_tensor = answer(decoded.message)
        if message_and_tensor is None:
            return None
        message, tensor = message_and_tensor
        return CODEC.encode(message, tensor=tensor)

    knowledge = Knowledge(*holders)
    run_case(case, checkpoint, knowledge, knowledge, asker_holds=lambda expert: False, answer=frames, patience=patience)


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
