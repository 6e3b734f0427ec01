"""Compiled rounds: whole texts over real sockets, and peers that do not behave in the middle of them."""

from __future__ import annotations

import struct

import pytest
import torch
import trio

from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.core.links import LinkShape
from meshmoe.engine.model import load_moe_model
from meshmoe.engine.request import FinishEvent, GenerationRequest
from meshmoe.engine.rounds.tables import Office, Round
from meshmoe.node.expert_client import CallPatience
from meshmoe.wire.codec import CODEC
from meshmoe.wire.messages import CallFailed, ExpertMoved, ExpertReply
from meshmoe.wire.tensors import pack_tensor
from tests.node.express_sides import ASKER, HOLDER, SPARE, open_tiny, run_case
from tests.node.support import GREEDY, SEEDED, open_test_mesh, written, written_alone

PROMPT = (5, 17, 40, 99)


class Knowledge:
    """Of the mesh: its holders hold all experts of the model, the first being the nearest."""

    def __init__(self, node, experts, *holders):
        self.node, self.of, self._experts = node, holders, experts
        self.version = self.holders_version = 0

    def holders(self, expert):
        return self.of

    def holder_map(self):
        return dict.fromkeys(self._experts, self.of) if self.of else {}

    def suspected(self, peer):
        return False if peer in self.of else None

    def call_time_s(self, peer, payload_bytes):
        return 0.001 * (1 + self.of.index(peer)) if peer in self.of else 0.05

    async def wait_changed(self):
        await trio.sleep(0.05)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def alone(checkpoint):
    return trio.run(written_alone, checkpoint.directory, [PROMPT], [GREEDY])[0]


def run(case, checkpoint, holders, answer=None, patience=None):
    """An asker with every other expert; the full holder; and an odd peer that answers a call by frames."""
    experts = [ExpertId(layer, index) for layer, index in load_moe_model(checkpoint).experts]
    run_case(
        case,
        checkpoint,
        Knowledge(ASKER, experts, *holders),
        Knowledge(HOLDER, experts, ASKER),
        asker_holds=lambda expert: expert.index % 2,
        answer=answer,
        patience=patience,
    )


def test_a_text_is_written_in_compiled_rounds_and_is_that_of_one_node(checkpoint, alone):
    async def case(asker, holder, odd):
        assert await written(asker.engine, PROMPT, GREEDY) == alone
        assert await written(asker.engine, PROMPT, GREEDY) == alone
        assert asker.counts["rounds"] > 10
        assert holder.counts["served"] > 10
        rounds, stats = asker.express.rounds, asker.express.client.usual.calls_by_peer
        assert stats[HOLDER] > 0
        assert not rounds._office.post.rounds[:, Round.STATE].any()

    run(case, checkpoint, [HOLDER])


def test_requests_are_told_what_rounds_took(checkpoint):
    async def case(asker, holder, odd):
        request = GenerationRequest(prompt_ids=PROMPT, sampling=GREEDY)
        async with asker.engine.generate(request) as events:
            async for event in events:
                if isinstance(event, FinishEvent):
                    stats = event.stats
        assert stats.decode_rounds > 0
        assert stats.expert_calls_remote > 0
        assert stats.sent_bytes > 0
        assert stats.received_bytes > 0
        assert stats.remote_wait_s > 0

    run(case, checkpoint, [HOLDER])


def not_a_number(decoded):
    tensor = decoded.tensor.header
    rows = sum(len(wanted.rows) or tensor.rows for wanted in decoded.message.experts)
    return CODEC.encode(
        ExpertReply(id=decoded.message.id), tensor=pack_tensor(torch.full((rows, tensor.columns), float("nan")))
    )


def narrow(decoded):
    return CODEC.encode(ExpertReply(id=decoded.message.id), tensor=pack_tensor(torch.ones(1, 3)))


def moved(decoded):
    lacking = [(wanted.index, HOLDER) for wanted in decoded.message.experts]
    return CODEC.encode(ExpertMoved(id=decoded.message.id, lacking=lacking))


def as_a_slip(numbers, data=b""):
    return [CODEC.slip_header("reply"), struct.pack(f"<{len(numbers)}i", *numbers), data]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (not_a_number, "bad_reply"),
        (narrow, "bad_reply"),
        (lambda decoded: CODEC.encode(CallFailed(id=decoded.message.id, reason="busy")), None),
        (moved, None),
        (lambda decoded: as_a_slip((decoded.message.id, 0, 0, 1, 3), bytes(12)), "bad_reply"),
        (lambda decoded: as_a_slip((decoded.message.id, 0, 0, 1 << 30, 64), bytes(12)), "bad_message"),
        (lambda decoded: as_a_slip((decoded.message.id, 0)), "bad_message"),
        (lambda decoded: None, None),
    ],
    ids=["nan", "shape", "busy", "moved", "slip", "slip-size", "slip-short", "silence"],
)
def test_what_goes_wrong_is_put_right_by_another_holder(checkpoint, alone, answer, fault):
    async def case(asker, holder, odd):
        assert await written(asker.engine, PROMPT, GREEDY) == alone
        assert odd.calls
        if fault is not None:
            assert asker.messenger.faults[fault] > 0
        assert not asker.express.rounds._office.post.rounds[:, Round.STATE].any()

    run(case, checkpoint, [SPARE, HOLDER], answer, CallPatience(attempt_s=0.3))


def test_an_answer_by_the_usual_way_is_taken_into_the_round(checkpoint, alone):
    async def case(asker, holder, odd):
        little = holder.engine.rounds[0].post
        little.limits[:] = 0  # the holder's compiled code serves nothing
        assert await written(asker.engine, PROMPT, GREEDY) == alone
        assert asker.counts["rounds"] > 10
        assert asker.counts["adopted"] == 0

    run(case, checkpoint, [HOLDER])


def test_a_cancelled_request_is_cancelled_at_the_peer(checkpoint):
    async def case(asker, holder, odd):
        with trio.move_on_after(0.5):
            await written(asker.engine, PROMPT, GREEDY)
        await odd.cancelled.wait()
        assert not asker.express.rounds._office.post.rounds[:, Round.STATE].any()

    run(case, checkpoint, [SPARE], lambda decoded: None, CallPatience(attempt_s=20.0))


def test_many_texts_at_once_are_those_of_one_node(checkpoint, alone):
    async def case(asker, holder, odd):
        texts = []

        async def write():
            texts.append(await written(asker.engine, PROMPT, GREEDY))

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(write)
        assert texts == [alone] * 6
        assert asker.counts["rounds"] > 0

    run(case, checkpoint, [HOLDER])


def test_a_peer_that_asks_while_we_wait_is_served(checkpoint, alone):
    """Both ask each other at the same time, neither with a thread to spare."""

    async def case(asker, holder, odd):
        for expert in tuple(holder.engine.pool.experts()):
            if expert.index % 2:
                holder.engine.pool.evict(expert)
        texts = []

        async def write(side):
            texts.append(await written(side.engine, PROMPT, GREEDY))

        async with trio.open_nursery() as nursery:
            for side in (asker, holder, asker, holder):
                nursery.start_soon(write, side)
        assert texts == [alone] * 4
        assert asker.counts["served"] > 0
        assert holder.counts["rounds"] > 0

    run(case, checkpoint, [HOLDER])


def test_bytes_of_a_stranger_reach_nobody(checkpoint, alone):
    async def case(asker, holder, odd):
        call = [CODEC.slip_header("call"), struct.pack("<9i", 4, 0, 100, 0, 1, 64, 1, 2**31 - 1, 0), bytes(256)]
        for _ in range(5):
            odd.transport.post(ASKER, Lane.DATA, call)
            odd.transport.post(ASKER, Lane.DATA, [b"\x93", b"x", b""])
            odd.transport.post(ASKER, Lane.DATA, as_a_slip((4, 0, 0, 1, 64), bytes(256)))
        assert await written(asker.engine, PROMPT, GREEDY) == alone
        assert asker.messenger.faults["bad_message"] >= 5

    run(case, checkpoint, [HOLDER])


def test_whole_nodes_over_emulated_links_write_what_one_alone_writes(tmp_path, checkpoint):
    def links(*names):
        return {NodeId(name): LinkShape(rtt_s=0.002, rate_bytes_per_s=1e7, jitter_s=0.001) for name in names}

    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            one = await mesh.add("one", checkpoint.directory, 0.6, links=links("two", "three"))
            await mesh.add("two", checkpoint.directory, 0.6, links=links("one", "three"))
            await mesh.add("three", checkpoint.directory, 0.6, links=links("one", "two"), express=False)
            await mesh.settle()
            texts = [await written(one, PROMPT, sampling) for sampling in (GREEDY, SEEDED)]
            numbers = one.parts.express.rounds._office.post.numbers
            assert numbers[Office.FINISHED] > 0
            assert numbers[Office.DROPPED] == 0
            return texts

    assert trio.run(main) == trio.run(written_alone, checkpoint.directory, [PROMPT], [GREEDY, SEEDED])
