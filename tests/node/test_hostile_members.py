"""A member that turned bad: what it sends costs a counter, a log line and in the end its connection, never a token."""

from __future__ import annotations

from contextlib import suppress
from itertools import count

import pytest
import trio

from meshmoe.core.endpoints import Lane
from meshmoe.core.errors import PeerError
from meshmoe.engine.dispatch import compute_rows
from meshmoe.engine.lean.little import serve_rows
from meshmoe.gossip.values import Claims, Demand, Holdings, Link, Links
from meshmoe.model.tiny import make_tiny_checkpoint
from meshmoe.node.call_room import CallRoom
from meshmoe.wire.frames import TensorFrame, TensorHeader
from meshmoe.wire.messages import ExpertCall, ExpertRows, Unit, UnitRequest
from tests.node.support import GREEDY, open_test_mesh, written, written_alone

PROMPT = (5, 17, 40, 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_checkpoint("qwen3_moe", tmp_path_factory.mktemp("hostile") / "model")


@pytest.fixture(params=[False, True], ids=["usual", "express"])
def add(request):
    """Add a node to a mesh whose expert calls go one way or the other."""

    async def on(mesh, name, model, share, **changes):
        return await mesh.add(name, model, share, express=request.param, **changes)

    return on


async def until(condition, within_s=40.0):
    with trio.fail_after(within_s):
        while not condition():
            await trio.sleep(0.02)


def prefer_bad(node) -> None:
    """Have it ask ``bad`` first."""
    node.parts.mesh.call_time_s = lambda peer, _bytes: 0.001 if peer == "bad" else 0.002


def corrupt(node, change) -> None:
    """Make a node's answers to peers wrong."""
    right = node.parts.expert_server.engine

    class Wrong:
        def __getattr__(self, name):
            return getattr(right, name)

        async def compute_experts(self, *arguments, **options):
            return change(await right.compute_experts(*arguments, **options))

    node.parts.expert_server.engine = Wrong()
    if node.parts.express is not None:
        node.parts.express.server.is_plain = lambda *_: False  # so that all calls come to that engine


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_answers_that_are_no_numbers_are_asked_for_elsewhere(tmp_path, model, add, value):
    def spoil(outputs):
        outputs = outputs.clone()
        outputs[0, 3] = value
        return outputs

    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            asker = await add(mesh, "asker", model, 0.3)
            bad = await add(mesh, "bad", model, 1.0)
            await add(mesh, "good", model, 1.0)
            await mesh.settle()
            prefer_bad(asker)
            corrupt(bad, spoil)
            tokens = await written(asker, PROMPT, GREEDY)
            assert asker.status().faults_by_peer["bad"]["bad_reply"] > 0
            assert "good" not in asker.status().faults_by_peer
            return tokens

    assert trio.run(main) == trio.run(written_alone, model, [PROMPT], [GREEDY])[0]


def test_spot_checks_name_who_computes_wrongly(tmp_path, model, add, caplog):
    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            asker = await add(mesh, "asker", model, 0.3, spot_check=1.0)
            bad = await add(mesh, "bad", model, 1.0)
            await add(mesh, "good", model, 1.0)
            await mesh.settle()
            prefer_bad(asker)
            await written(asker, PROMPT, GREEDY)
            await until(lambda: asker.status().spot_checks.made > 0)
            assert asker.status().spot_checks.disagreements == 0
            corrupt(bad, lambda outputs: outputs * 1.5)
            for _ in range(5):
                await written(asker, PROMPT, GREEDY)
            await until(lambda: asker.status().spot_checks.disagreements > 0)

    trio.run(main)
    assert any("one of them computes wrongly" in record.message for record in caplog.records)


def test_calls_that_do_not_fit_the_model_reach_no_kernel_and_end_in_a_cut(tmp_path, model, add, monkeypatch):
    computed = []

    async def unmeasured(_):
        """A node measures its own experts in its first seconds, which is no call of anybody's."""
        return
        yield

    monkeypatch.setattr("meshmoe.node.node.measurements", unmeasured)

    def counted(*arguments):
        computed.append(arguments)
        return compute_rows(*arguments)

    monkeypatch.setattr("meshmoe.engine.engine.compute_rows", counted)
    monkeypatch.setattr("meshmoe.node.express_server.compute_rows", counted)

    def counted_little(*arguments):
        done = serve_rows(*arguments)  # which checks everything before it computes anything
        if done >= 0:
            computed.append(arguments)
        return done

    monkeypatch.setattr("meshmoe.engine.lean.little.serve_rows", counted_little)

    def tensor(rows, columns, dtype="f32"):
        header = TensorHeader(dtype, rows, columns)
        return TensorFrame(header, bytes(header.size_bytes))

    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            victim = await add(mesh, "victim", model, 1.0)
            bad = await add(mesh, "bad", model, 1.0)
            await mesh.settle()
            held = min(victim.pool.experts())
            layer, width = held.layer, victim.model.config.hidden_size
            computed.clear()
            ids = count(1001, 2)

            async def send(experts, frame, layer=layer):
                call = ExpertCall(id=next(ids), layer=layer, experts=experts, budget_ms=1000)
                with suppress(PeerError):  # it may have been cut off
                    await bad.parts.messenger.send(victim.settings.node, Lane.DATA, call, tensor=frame)
                await trio.sleep(0.02)

            one = [ExpertRows(held.index)]
            before = victim.parts.messenger.faults["bad_call"]
            await send(one, tensor(1, width // 2))  # narrower than the weights: a kernel would read past its end
            await send(one, tensor(1, 2 * width))
            await send(one, tensor(1, width, "f16"))
            await send(one, tensor(1, width), layer=4000)
            await send([ExpertRows(60_000)], tensor(1, width))
            await send([ExpertRows(held.index, [5])], tensor(1, width))
            await send(one * 1024, tensor(8192, width))  # an answer of gigabytes
            await until(lambda: victim.parts.messenger.faults["bad_call"] == before + 7)
            assert not computed
            await send(one, tensor(1, width))
            await until(lambda: len(computed) == 1)

            for _ in range(30):
                await send(one, tensor(1, 2 * width))
            await until(lambda: victim.parts.messenger.faults["cut_off"] == 1)
            await until(lambda: victim.status().peers[1].state == "dead", within_s=60)
            assert victim.status().faults_by_peer["bad"]["bad_call"] >= 20

    trio.run(main)


def test_no_name_of_a_unit_leads_out_of_the_store(tmp_path, model, add):
    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            victim = await add(mesh, "victim", model, 1.0)
            bad = await add(mesh, "bad", model, 1.0)
            await mesh.settle()
            served = victim.parts.unit_server.sent_bytes
            names = ("../../node.key", "/etc/passwd", "..", "node.key", "mesh.msgpack", "config.json\0", "a/b", "")
            for number, name in enumerate(names):
                request = UnitRequest(id=number, unit=Unit("file", name), offset=0, length=1000)
                await bad.parts.messenger.send(victim.settings.node, Lane.BULK, request)
            await trio.sleep(0.5)
            assert victim.parts.unit_server.sent_bytes == served
            good = UnitRequest(id=99, unit=Unit("file", "config.json"), offset=0, length=1000)
            await bad.parts.messenger.send(victim.settings.node, Lane.BULK, good)
            await until(lambda: victim.parts.unit_server.sent_bytes > served)

    trio.run(main)


def test_one_peer_does_not_take_all_the_room():
    room = CallRoom(256)
    assert all(room.enter("a", 1 << 20) for _ in range(128))
    assert not room.enter("a", 1)
    assert room.enter("b", 100 << 20)
    assert not room.enter("c", 129 << 20), "all calls together hold no more than 256 MiB"
    room.leave("a", 1 << 20)
    assert room.enter("a", 1)


def test_gossip_about_experts_that_the_model_does_not_have(tmp_path, model, add):
    """It is in form, so it reaches custody, placement, dispatch and the status: all must bear it."""

    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            victim = await add(mesh, "victim", model, 0.6)
            bad = await add(mesh, "bad", model, 0.6)
            await add(mesh, "other", model, 0.6)
            await mesh.settle()
            for layer, index in ((999, 5), (0, 60_000), (3, 0), (0, 31)):
                bad.parts.gossip.publish(
                    Holdings.of(layer, [index]),
                    Claims.of(layer, {index: 7}),
                    Demand.of(layer, [1000.0] * min(index + 1, 8000)),
                )
            bad.parts.gossip.publish(Links([Link("nobody", 1, 1 << 40), Link("victim", 0, 0)]))
            await trio.sleep(0.3)
            for _ in range(3):
                tokens = await written(victim, PROMPT, GREEDY)
                await trio.sleep(1.0)
                assert victim.status().serving.ready
            return tokens

    assert trio.run(main) == trio.run(written_alone, model, [PROMPT], [GREEDY])[0]
