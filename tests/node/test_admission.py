"""Who is let into a secured mesh, who is not, and who has to go: whole nodes on real sockets."""

from __future__ import annotations

import stat
import time
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import zmq

from meshmoe.admission import RollDigest, new_secret, ticket_of
from meshmoe.api.cause import cause
from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.core.errors import ConfigError, JoinError, PeerError, RequestError
from meshmoe.core.ids import NodeId
from meshmoe.core.token import parse_peer
from meshmoe.model.tiny import make_tiny_checkpoint
from meshmoe.node import joining
from meshmoe.node.node import Node
from meshmoe.node.security import Security
from meshmoe.transport.keyring import Keyring, new_key_pair
from meshmoe.transport.zmq_transport import open_zmq_transport
from meshmoe.wire.codec import CODEC
from meshmoe.wire.messages import CallCancel
from tests.node.support import open_test_mesh, settings


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_checkpoint("qwen3_moe", tmp_path_factory.mktemp("admission") / "model")


@pytest.fixture(autouse=True)
def short_wait(monkeypatch):
    monkeypatch.setattr(joining, "ANSWER_TIMEOUT_S", 1.5)


async def until(condition, within_s=90.0):
    with trio.fail_after(within_s):
        while not condition():
            await trio.sleep(0.02)


async def refused(mesh, name, model, contact, **changes) -> str:
    """Try to join, and give the words of the refusal."""
    node = Node(settings(mesh.directory, name, model, 0.5, peers=(contact,), **changes))
    with trio.fail_after(150):
        return await reason_of_end(node)


async def reason_of_end(node: Node) -> str:
    """Run a node until it fails."""
    try:
        await node.run()
    except Exception as error:
        assert isinstance(cause(error), JoinError), error
        return str(cause(error))
    raise AssertionError("it was let in, and has left again")


def present(node: Node) -> set[str]:
    states = {peer.node: peer.state for peer in node.status().peers if not peer.is_self}
    return {name for name, state in states.items() if state in ("alive", "suspect", "joining")}


def test_strangers_are_refused_and_nobody_hears_of_them(tmp_path, model):
    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            first = await mesh.add("first", model, 1.0)
            contact = parse_peer(first.join_word())
            assert "an address alone" in await refused(mesh, "a", model, contact._replace(key=None, ticket=None))
            assert "it has no token" in await refused(mesh, "b", model, contact._replace(ticket=None))
            forged = ticket_of(new_secret(), contact.ticket.token, contact.ticket.expires_s)
            assert "its proof is not one of this mesh" in await refused(
                mesh, "c", model, contact._replace(ticket=forged)
            )
            # Somebody in the middle, who has a key of its own: the newcomer talks to nobody but the token's key.
            other_key = new_key_pair().public
            assert "no node answered" in await refused(mesh, "d", model, contact._replace(key=other_key))
            assert "no node answered" in await refused(mesh, "e", model, contact, insecure=True)
            assert present(first) == set()
            assert set(first.security.roll.records) == {"first"}

    trio.run(main)


def test_expired_and_revoked_tokens_admit_nobody(tmp_path, model, monkeypatch):
    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            first = await mesh.add("first", model, 1.0)
            keeper = first.keeper()
            made = keeper.new_token(60, "for Ann")
            listed = {token.id: token for token in keeper.tokens()}
            assert listed[made.id].label == "for Ann" and listed[made.id].word is None
            keeper.revoke_token(made.id[:6])
            assert "its token was revoked" in await refused(mesh, "a", model, parse_peer(made.word))
            with pytest.raises(RequestError, match="there is no token 'ffff'"):
                keeper.revoke_token("ffff")

            short = parse_peer(keeper.new_token(60, "").word)
            real = time.time
            monkeypatch.setattr(time, "time", lambda: real() + 120)
            assert "its token has expired" in await refused(mesh, "b", model, short)
            monkeypatch.undo()
            stretched = short._replace(ticket=type(short.ticket)(short.ticket.token, 0, short.ticket.secret))
            monkeypatch.setattr(joining, "ANSWER_TIMEOUT_S", 1.5)
            assert "its proof is not one of this mesh" in await refused(mesh, "c", model, stretched)

    trio.run(main)


def test_a_member_comes_back_without_a_token_and_a_name_is_not_given_twice(tmp_path, model):
    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            first = await mesh.add("first", model, 1.0)
            second = await mesh.add("second", model, 1.0)
            contact = parse_peer(first.join_word())
            thief = {"state_dir": tmp_path / "thief"}
            words = await refused(mesh, "second", model, contact, **thief)
            assert "a node named second is in the mesh already" in words
            key = first.security.roll.records["second"].key
            await until(lambda: "first" in second.security.roll.contacts)
            await trio.sleep(0.5)
            for name in ("node.key", "mesh.msgpack"):
                assert stat.S_IMODE((tmp_path / "second" / name).stat().st_mode) == 0o600
            second.stop()
            mesh.nodes.remove(second)
            await until(lambda: "second" not in present(first))
            await mesh.add("second", model, 1.0, peers=(contact._replace(key=None, ticket=None),))
            assert first.security.roll.records["second"].key == key
            await until(lambda: "second" in present(first))

    trio.run(main)


@asynccontextmanager
async def impostor(node: Node, keys, name: str):
    """A transport that has a key pair and calls itself ``name``, connected to a node."""
    keyring = Keyring(keys)
    victim = NodeId(node.settings.node)
    keyring.assign({victim: node.security.key})
    async with open_zmq_transport(NodeId(name), 1 << 60, keyring=keyring) as transport:
        transport.connect(victim, node.parts.endpoints)

        def post(lane, message):
            with suppress(PeerError):  # it may have been cut off
                transport.post(victim, lane, CODEC.encode(message))

        yield post


def test_no_member_speaks_as_another(tmp_path, model):
    """A member connects under the name of another one and with a later generation: nothing of it is believed."""

    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            first = await mesh.add("first", model, 1.0)
            second = await mesh.add("second", model, 1.0)
            third = await mesh.add("third", model, 1.0)
            heard = []
            handlers = first.parts.messenger._handlers
            known = handlers[CallCancel]
            handlers[CallCancel] = lambda parcel, decoded: (heard.append(parcel.sender), known(parcel, decoded))
            for keys, name, expected in (
                (second.security.keyring.own, "second", ["second"]),
                (second.security.keyring.own, "third", []),
                (new_key_pair(), "third", []),
            ):
                heard.clear()
                async with impostor(first, keys, name) as post:
                    for _ in range(10):
                        post(Lane.DATA, CallCancel(id=1))
                        post(Lane.CONTROL, CallCancel(id=1))
                        await trio.sleep(0.05)
                    assert set(heard) == set(expected), name
            await trio.sleep(1.0)
            assert present(first) == {"second", "third"}, "the real ones are still heard"
            assert third.status().peers

    trio.run(main)


def test_an_expelled_member_is_out_at_once_and_everywhere(tmp_path, model):
    async def main():
        async with trio.open_nursery() as nursery, open_test_mesh(tmp_path) as mesh:
            first = await mesh.add("first", model, 1.0)
            second = await mesh.add("second", model, 1.0)
            old_word = first.join_word()
            out = Node(settings(tmp_path, "out", model, 1.0, peers=(parse_peer(old_word),)))
            ended = []

            async def live():
                ended.append(await reason_of_end(out))

            nursery.start_soon(live)
            await until(lambda: "out" in present(first) and "out" in present(second))
            with pytest.raises(RequestError, match="nobody is no other member"):
                await first.keeper().expel("nobody")
            rounds = []
            handlers = second.parts.messenger._handlers
            compare = handlers[RollDigest]
            handlers[RollDigest] = lambda parcel, decoded: (rounds.append(parcel.sender), compare(parcel, decoded))
            await first.keeper().expel("out")
            await until(lambda: not second.security.keyring.node_of(out.security.key.hex()))
            assert len(rounds) <= 3, "told at once, and if that were lost in one of the next rounds"
            await until(lambda: ended)
            assert "was expelled from the mesh by first" in ended[0]
            await until(lambda: "out" not in present(first) | present(second))
            # What it knows is of no use any more: neither its key, nor the tokens of before.
            assert "expelled" in await refused(mesh, "out", model, parse_peer(old_word))
            assert "its proof is not one of this mesh" in await refused(
                mesh, "friend", model, parse_peer(old_word), state_dir=tmp_path / "friend"
            )
            await mesh.add("new", model, 0.5, peers=(parse_peer(second.join_word()),))
            await mesh.settle()

    trio.run(main)


def test_the_secret_is_rotated_while_the_mesh_works(tmp_path, model):
    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            first = await mesh.add("first", model, 1.0)
            second = await mesh.add("second", model, 1.0)
            before = first.join_word()
            second.keeper().rotate_secret()
            await until(lambda: first.security.roll.digest() == second.security.roll.digest())
            assert first.security.roll.secret.epoch == 2
            assert "its proof is not one of this mesh" in await refused(mesh, "late", model, parse_peer(before))
            await mesh.add("third", None, 0.5)
            assert first.parts.messenger.transport.stats(NodeId("second")).lost_connections == 0

    trio.run(main)


def test_an_insecure_mesh_says_so(tmp_path, model, caplog):
    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            first = await mesh.add("first", model, 1.0, insecure=True)
            assert first.status().secured is False
            assert "--insecure" in first.status().join_command
            with pytest.raises(RequestError, match="this mesh is insecure"):
                first.keeper()
            await mesh.add("second", model, 1.0, insecure=True)

    trio.run(main)
    assert any("INSECURE" in record.message for record in caplog.records)


def test_a_key_that_others_could_read_is_closed_and_a_damaged_one_refused(tmp_path, caplog):
    Security(NodeId("a"), tmp_path)
    path = tmp_path / "node.key"
    path.chmod(0o644)
    Security(NodeId("a"), tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "could be read by others" in caplog.text
    path.write_text("rust")
    with pytest.raises(ConfigError, match=r"is no key of a node: put it back from a backup, or delete it"):
        Security(NodeId("a"), tmp_path)


def test_nothing_travels_in_the_clear(tmp_path, model):
    """What a node sends to a member is not on the wire; a listener in the middle sees the greeting and noise."""

    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            first = await mesh.add("first", model, 1.0)
            async with trio.open_nursery() as nursery:
                seen = bytearray()
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                port = listeners[0].socket.getsockname()[1]

                async def pass_on(stream):
                    upstream = await trio.open_tcp_stream("127.0.0.1", first.parts.endpoints.control_port)

                    async def copy(source, sink):
                        async for data in source:
                            seen.extend(data)
                            await sink.send_all(data)

                    async with trio.open_nursery() as both:
                        both.start_soon(copy, stream, upstream)
                        both.start_soon(copy, upstream, stream)

                nursery.start_soon(trio.serve_listeners, pass_on, listeners)
                keyring = Keyring(new_key_pair())
                keyring.assign({NodeId("first"): first.security.key})
                async with open_zmq_transport(NodeId("spoken-of"), 1, keyring=keyring) as transport:
                    transport.connect(NodeId("first"), Endpoints("127.0.0.1", port))
                    transport.post(NodeId("first"), Lane.CONTROL, [b"needle in a haystack"])
                    await until(lambda: len(seen) > 500)
                    await trio.sleep(0.3)
                assert b"CURVE" in seen
                assert b"needle" not in seen and b"spoken-of" not in seen
                await _replay(bytes(seen), first)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def _replay(captured: bytes, node: Node) -> None:
    """Everything that was overheard, sent again: the handshake does not complete, and nothing is delivered."""
    before = node.parts.messenger.faults.total()
    stream = await trio.open_tcp_stream("127.0.0.1", node.parts.endpoints.control_port)
    with trio.move_on_after(3), pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
        await stream.send_all(captured)
        while await stream.receive_some(4096):
            pass
        raise trio.ClosedResourceError
    await stream.aclose()
    await trio.sleep(0.2)
    assert node.parts.messenger.faults.total() == before


def test_libzmq_has_curve():
    assert zmq.has("curve")
