"""Somebody between two nodes who changes what passes, or talks to each with keys of its own: nobody believes it.

It knows all public keys and the whole protocol, as anybody on the network may. A proxy that changes nothing is the
control: through it everything works.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import zmq
import zmq.utils.z85

from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.core.errors import PeerError
from meshmoe.core.ids import NodeId
from meshmoe.core.token import parse_peer
from meshmoe.model.tiny import make_tiny_checkpoint
from meshmoe.node import joining
from meshmoe.node.node import Node
from meshmoe.transport.keyring import Keyring, new_key_pair
from meshmoe.transport.zmq_transport import open_zmq_transport
from meshmoe.wire.codec import CODEC
from meshmoe.wire.messages import CallCancel
from tests.node.support import open_test_mesh
from tests.node.test_admission import present, refused, until

Change = Callable[[bytearray, int], None]
"""Changes a piece of the stream in place; is told how much of it has passed before."""

# CurveZMQ's steps, by how many bytes have passed in their direction: a greeting of 64, HELLO of 200 and two of
# framing, WELCOME of 168 and two, then INITIATE and READY, then messages.
# Answers come by a connection of the other way.
GREETING, HELLO, WELCOME, INITIATE, READY, MESSAGES = 12, 150, 120, 330, 250, 640


def untouched(_data: bytearray, _passed: int) -> None:
    pass


def flip(at: int, every: int = 1 << 30) -> Change:
    """One bit at this place of every connection's stream, and again after so many bytes."""

    def change(data: bytearray, passed: int) -> None:
        first = at if passed <= at else at + -(-(passed - at) // every) * every
        for place in range(first, passed + len(data), every):
            data[place - passed] ^= 1

    return change


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_checkpoint("qwen3_moe", tmp_path_factory.mktemp("middle") / "model")


@pytest.fixture(autouse=True)
def short_wait(monkeypatch):
    monkeypatch.setattr(joining, "ANSWER_TIMEOUT_S", 1.5)


class Proxy:
    """Between a node's control port and those who come to it here."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections = 0
        self.passed_bytes = 0


@asynccontextmanager
async def in_the_middle(target: int, upward: Change, downward: Change = untouched) -> AsyncIterator[Proxy]:
    async def copy(source: trio.SocketStream, sink: trio.SocketStream, change: Change, both: trio.CancelScope) -> None:
        passed = 0
        try:
            async for data in source:
                piece = bytearray(data)
                change(piece, passed)
                passed += len(piece)
                proxy.passed_bytes += len(piece)
                await sink.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        both.cancel()

    async def pass_on(stream: trio.SocketStream) -> None:
        proxy.connections += 1
        try:
            upstream = await trio.open_tcp_stream("127.0.0.1", target)
        except OSError:
            return
        async with upstream, trio.open_nursery() as both:
            both.start_soon(copy, stream, upstream, upward, both.cancel_scope)
            both.start_soon(copy, upstream, stream, downward, both.cancel_scope)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy = Proxy(listeners[0].socket.getsockname()[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, pass_on, listeners)
        yield proxy
        nursery.cancel_scope.cancel()


def contact_by(node: Node, port: int):
    """What a newcomer has that was told to come to another port."""
    return parse_peer(node.join_word())._replace(addresses=(("127.0.0.1", port),))


def test_who_joins_through_a_proxy_joins_only_if_it_changes_nothing(tmp_path, model):
    changes = {
        "greeting": (flip(GREETING), untouched),
        "hello": (flip(HELLO), untouched),
        "welcome": (untouched, flip(WELCOME)),
        "initiate": (flip(INITIATE), untouched),
        "messages": (flip(MESSAGES, 16), untouched),
        "ready": (untouched, flip(READY)),
    }

    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            first = await mesh.add("first", model, 1.0)
            port = first.parts.endpoints.control_port
            for name, (upward, downward) in changes.items():
                async with in_the_middle(port, upward, downward) as proxy:
                    words = await refused(mesh, f"by-{name}", model, contact_by(first, proxy.port))
                    assert proxy.connections, name
                assert "no node answered" in words, (name, words)
                assert present(first) == set(), name
            async with in_the_middle(port, untouched) as proxy:
                await mesh.add("guest", model, 0.5, peers=(contact_by(first, proxy.port),))
                assert proxy.passed_bytes > MESSAGES
            assert present(first) == {"guest"}
            assert set(first.security.roll.records) == {"first", "guest"}

    trio.run(main)


@pytest.mark.parametrize("damaged", [False, True], ids=["untouched", "changed"])
def test_what_a_member_says_arrives_as_it_was_said_or_not_at_all(tmp_path, model, damaged):
    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            first = await mesh.add("first", model, 1.0)
            second = await mesh.add("second", model, 1.0)
            second.stop()
            mesh.nodes.remove(second)
            await until(lambda: "second" not in present(first))
            heard: list[int] = []
            first.parts.messenger._handlers[CallCancel] = lambda _parcel, decoded: heard.append(decoded.message.id)
            keyring = Keyring(second.security.keyring.own)
            keyring.assign({NodeId("first"): first.security.key})
            change = flip(2000) if damaged else untouched
            bad_before = dict(first.status().faults_by_peer)
            async with (
                in_the_middle(first.parts.endpoints.control_port, change) as proxy,
                open_zmq_transport(NodeId("second"), 1 << 60, keyring=keyring) as transport,
            ):
                transport.connect(NodeId("first"), Endpoints("127.0.0.1", proxy.port))
                for number in range(200):
                    with suppress(PeerError):  # its connection has just been broken
                        transport.post(NodeId("first"), Lane.CONTROL, CODEC.encode(CallCancel(id=number)))
                    await trio.sleep(0.01)
                if not damaged:
                    await until(lambda: len(heard) == 200, 20)
                await trio.sleep(0.5)
            assert heard == sorted(set(heard)), "in order, and none twice"
            assert set(heard) <= set(range(200))
            assert (len(heard) < 200) is damaged
            assert heard, "some passed before the first change"
            assert dict(first.status().faults_by_peer) == bad_before, "nothing damaged was taken for a message"

    trio.run(main)


def test_somebody_with_keys_of_its_own_in_the_middle_hears_nothing(tmp_path, model):
    """It is a CURVE server towards the newcomer and a CURVE client towards the node, each with its own keys."""

    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            first = await mesh.add("first", model, 1.0)
            keys = new_key_pair()
            context = zmq.Context()
            front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
            overheard: list[bytes] = []
            try:
                for socket in (front, back):
                    socket.setsockopt(zmq.LINGER, 0)
                front.curve_server, front.curve_secretkey, front.curve_publickey = True, *z85(keys.secret, keys.public)
                port = front.bind_to_random_port("tcp://127.0.0.1")
                back.curve_serverkey = z85(first.security.key)[0]
                back.curve_secretkey, back.curve_publickey = z85(keys.secret, keys.public)
                back.connect(f"tcp://127.0.0.1:{first.parts.endpoints.control_port}")

                async def pass_on():
                    while True:
                        for source, sink in ((front, back), (back, front)):
                            while source.poll(0):
                                frames = source.recv_multipart()
                                overheard.extend(frames)
                                sink.send_multipart(frames)
                        await trio.sleep(0.01)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(pass_on)
                    words = await refused(mesh, "newcomer", model, contact_by(first, port))
                    # One that believes the key in the middle would be overheard: the attack itself works.
                    misled = contact_by(first, port)._replace(key=keys.public)
                    await refused(mesh, "misled", model, misled)
                    assert overheard, "who does not check the key talks to whoever is there"
                    nursery.cancel_scope.cancel()
            finally:
                front.close()
                back.close()
                context.term()
            assert "no node answered" in words
            assert not any(b"newcomer" in frame for frame in overheard)
            assert present(first) == set()
            assert set(first.security.roll.records) == {"first"}

    trio.run(main)


def z85(*keys: bytes) -> list[bytes]:
    return [zmq.utils.z85.encode(key) for key in keys]
