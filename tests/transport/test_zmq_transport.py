"""What only the real transport has: ports, connections that break, strangers who send anything, closing in time."""

import logging
import socket
import time

import pytest
import trio
import zmq

from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.core.errors import ConfigError
from meshmoe.core.ids import NodeId
from meshmoe.transport.base import UnreachableError
from meshmoe.transport.envelope import seal
from meshmoe.transport.zmq_transport import open_zmq_transport
from meshmoe.wire.frames import FRAMES_MAX, PARCEL_BYTES_MAX
from tests.transport.support import A, B, contents, fill, free_port, receive_all, trio_test, until


@trio_test
async def test_ports_in_a_row_or_all_ephemeral():
    port = free_port()
    async with open_zmq_transport(A, 1, "127.0.0.1", port) as a:
        assert a.endpoints == Endpoints("127.0.0.1", port, port + 1, port + 2)
    async with open_zmq_transport(A, 1) as a, open_zmq_transport(B, 1) as b:
        ports = [transport.endpoints.port(lane) for transport in (a, b) for lane in Lane]
        assert len(set(ports)) == 6
        assert min(ports) > 0


@pytest.mark.parametrize("lane", list(Lane))
@trio_test
async def test_a_busy_port_is_named_and_the_others_are_given_back(lane):
    port = free_port()
    with socket.create_server(("127.0.0.1", port + lane)):
        with pytest.raises(ConfigError) as caught:
            async with open_zmq_transport(A, 1, "127.0.0.1", port):
                pass
        line = str(caught.value)
        assert f"port {port + lane} of 127.0.0.1" in line
        assert lane.name.lower() in line
        assert "listen on another port" in line
    async with open_zmq_transport(A, 1, "127.0.0.1", port):
        pass


@pytest.mark.parametrize(
    ("host", "port", "line"),
    [
        ("192.0.2.1", 0, "no such address"),
        ("not a host", 0, "neither a host name nor an address"),
        ("127.0.0.1;127.0.0.2", 0, "neither"),
        ("127.0.0.1", 65534, "65533 is the last"),
    ],
)
@trio_test
async def test_addresses_that_cannot_be_listened_on(host, port, line):
    with pytest.raises(ConfigError, match=line):
        async with open_zmq_transport(A, 1, host, port):
            pass


@pytest.mark.parametrize("host", ["::1", "localhost", "0.0.0.0", "::"])
@trio_test
async def test_hosts_of_all_kinds(host):
    reach = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        async with open_zmq_transport(A, 1, host) as a, open_zmq_transport(B, 1) as b:
            ports = [a.endpoints.port(lane) for lane in Lane]
            b.connect(A, Endpoints(reach, *ports))
            b.post(A, Lane.DATA, [b"x"])
            assert contents(await a.receive(Lane.DATA)) == [b"x"]
    except ConfigError:
        if ":" not in host:
            raise
        pytest.skip("this machine has no IPv6")


@pytest.mark.parametrize("host", ["a b", "1.2.3.4;5.6.7.8", "x/../y", "*", "ipc:///tmp/x"])
@trio_test
async def test_hostile_hosts_are_refused(host):
    async with open_zmq_transport(A, 1) as a:
        with pytest.raises(UnreachableError, match="neither"):
            a.connect(B, Endpoints(host, 1, 2, 3))


@trio_test
async def test_names_that_do_not_resolve_hurt_nobody():
    async with open_zmq_transport(A, 1) as a:
        a.connect(B, Endpoints("no-such-host.invalid", 1, 2, 3))
        a.post(B, Lane.CONTROL, [b"x"])
        a.connect(A, a.endpoints)
        a.post(A, Lane.CONTROL, [b"me"])
        assert contents(await a.receive(Lane.CONTROL)) == [b"me"]


class Stranger:
    """A plain ZeroMQ socket that sends what it likes to one lane of a transport."""

    def __init__(self, port: int, identity: bytes | None) -> None:
        self.context = zmq.Context()
        self.raw = self.context.socket(zmq.DEALER)
        if identity is not None:
            self.raw.set(zmq.ROUTING_ID, identity)
        self.raw.connect(f"tcp://127.0.0.1:{port}")

    def __enter__(self):
        return self.raw

    def __exit__(self, *_):
        self.context.destroy(linger=0)


BAD_IDENTITIES = [
    None,
    b"someone",
    b"1/1/0/UPPER",
    b"1/-1/0/a",
    b"1/01/0/a",
    b"1/9223372036854775808/0/a",
    b"0/1/0/a",  # of the control lane, on the data port
    b"3/1/0/a",
    b"1/1/0/" + b"a" * 64,
    b"1/1/0/a\n",
    b"1/1/a",
    b"1/1/01/a",
    b"\xff" * 200,
]


@pytest.mark.parametrize("identity", BAD_IDENTITIES)
@trio_test
async def test_malformed_identities_are_dropped_and_counted(identity, caplog):
    async with open_zmq_transport(B, 1) as b, open_zmq_transport(A, 1) as a:
        a.connect(B, b.endpoints)
        with Stranger(b.endpoints.data_port, identity) as raw, caplog.at_level(logging.WARNING):
            for _ in range(20):
                raw.send_multipart([b"hostile", b"frames"])

            async def wait_and_post():
                await until(lambda: b.bad_messages == 20)
                a.post(B, Lane.DATA, [b"fine"])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_and_post)
                parcel = await b.receive(Lane.DATA)
            assert contents(parcel) == [b"fine"]
            assert parcel.sender == A
        assert len(caplog.records) == 1
        assert "data lane: dropped" in caplog.text


@trio_test
async def test_malformed_messages_are_dropped_and_counted():
    async with open_zmq_transport(B, 1) as b:
        with Stranger(b.endpoints.data_port, b"1/5/0/c") as raw:
            raw.send_multipart([b"x"] * (FRAMES_MAX + 1))
            raw.send_multipart([b"x"] * 5000)
            raw.send_multipart([bytes(PARCEL_BYTES_MAX // 2)] * 3)
            raw.send(seal([b"good"]))
            parcel = await b.receive(Lane.DATA)
            assert (parcel.sender, parcel.generation, contents(parcel)) == ("c", 5, [b"good"])
            assert b.bad_messages == 3


@trio_test
async def test_bytes_that_are_not_zeromq_hurt_nobody():
    async with open_zmq_transport(B, 1) as b, open_zmq_transport(A, 1) as a:
        junk = [
            b"GET / HTTP/1.1\r\n\r\n",
            b"\xff" * 64,
            b"\0" * 1000,
            b"",
            b"\xff\0\0\0\0\0\0\0\1\x7f\3" + b"\xff" * 500,
        ]
        strangers = []
        for bytes_sent in junk:
            stranger = socket.create_connection(("127.0.0.1", b.endpoints.data_port))
            stranger.sendall(bytes_sent)
            strangers.append(stranger)
        a.connect(B, b.endpoints)
        a.post(B, Lane.DATA, [b"fine"])
        assert contents(await b.receive(Lane.DATA)) == [b"fine"]
        for stranger in strangers:
            stranger.close()


@trio_test
async def test_a_frame_that_is_too_long_costs_its_sender_the_connection():
    async with open_zmq_transport(B, 1) as b, open_zmq_transport(A, 1) as a:
        with Stranger(b.endpoints.control_port, b"0/1/0/c") as raw:
            raw.send(bytes(4 << 20))
            a.connect(B, b.endpoints)
            a.post(B, Lane.CONTROL, [b"fine"])
            assert contents(await b.receive(Lane.CONTROL)) == [b"fine"]
        assert b.stats(NodeId("c")).received_parcels == 0


@trio_test
async def test_a_second_connection_of_the_same_identity_takes_over():
    """ROUTER_HANDOVER: without it the newcomer is ignored and everything it says is lost."""
    async with open_zmq_transport(B, 1) as b:
        with Stranger(b.endpoints.data_port, b"1/1/0/c") as old:
            old.send(seal([b"old"]))
            assert contents(await b.receive(Lane.DATA)) == [b"old"]
            with Stranger(b.endpoints.data_port, b"1/1/0/c") as new:
                new.send(seal([b"new"]))
                assert contents(await b.receive(Lane.DATA)) == [b"new"]


@trio_test
async def test_what_a_connection_that_was_taken_over_had_brought_is_still_its_senders():
    async with open_zmq_transport(B, 1) as b:
        with Stranger(b.endpoints.data_port, b"1/1/0/c") as old:
            for number in range(50):
                old.send(seal([b"%d" % number]))
            assert contents(await b.receive(Lane.DATA)) == [b"0"]
            with Stranger(b.endpoints.data_port, b"1/1/0/c") as new:
                new.send(seal([b"new"]))
                got = []
                while got[-1:] != [b"new"]:
                    parcel = await b.receive(Lane.DATA)
                    assert (parcel.sender, parcel.generation) == ("c", 1)
                    got += contents(parcel)
        assert b.bad_messages == 0


@trio_test
async def test_an_error_while_connecting_leaves_nothing_open(monkeypatch):
    async with open_zmq_transport(A, 1) as a:

        def fail(*_args, **_kwargs):
            raise OSError("no")

        monkeypatch.setattr(zmq.Socket, "monitor", fail)
        with pytest.raises(OSError, match="no"):
            a.connect(B, Endpoints("127.0.0.1", 1, 2, 3))
        with pytest.raises(UnreachableError):
            a.post(B, Lane.DATA, [b"x"])


@trio_test
async def test_replies_to_the_dealer_are_bounded():
    """A hostile peer may write to a socket that only sends; nobody reads that, so little of it may be kept."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.set(zmq.ROUTER_MANDATORY, 1)
    router.set(zmq.SNDHWM, 10)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    async with open_zmq_transport(A, 1) as a:
        a.connect(B, Endpoints("127.0.0.1", 0, port))
        a.post(B, Lane.DATA, [b"hello"])
        with trio.fail_after(5):
            while not router.get(zmq.EVENTS) & zmq.POLLIN:
                await trio.sleep(0.01)
        identity = router.recv_multipart()[0]
        taken = 0
        with pytest.raises(zmq.Again):
            while taken < 1000:
                router.send_multipart([identity, bytes(1 << 20)], zmq.NOBLOCK)
                taken += 1
                await trio.sleep(0.002)
        assert taken < 40
    context.destroy(linger=0)


@trio_test
async def test_leaving_is_quick_whatever_state_peers_are_in():
    """A peer that reads nothing, one that never answers, one that is not there, one at a black-hole address."""
    mute = socket.create_server(("127.0.0.1", 0))
    async with open_zmq_transport(B, 1) as b:
        async with open_zmq_transport(A, 1) as a:
            a.connect(B, b.endpoints)
            a.connect(NodeId("mute"), Endpoints("127.0.0.1", *[mute.getsockname()[1]] * 3))
            a.connect(NodeId("gone"), Endpoints("127.0.0.1", 1, 2, 3))
            a.connect(NodeId("hole"), Endpoints("192.0.2.1", 1, 2, 3))
            await fill(a, B, Lane.BULK, [bytes(1 << 20)])
            for peer in ("mute", "gone", "hole"):
                await fill(a, NodeId(peer), Lane.BULK, [bytes(1 << 20)], quiet_s=0.01)
                a.post(NodeId(peer), Lane.CONTROL, [b"x"])
            start_s = time.perf_counter()
        assert time.perf_counter() - start_s < 10.0
    mute.close()


@trio_test
async def test_a_farewell_gets_out():
    async with open_zmq_transport(B, 1) as b:
        async with open_zmq_transport(A, 1) as a:
            a.connect(B, b.endpoints)
            a.post(B, Lane.CONTROL, [b"hello"])
            await b.receive(Lane.CONTROL)
            for number in range(20):
                a.post(B, Lane.CONTROL, [b"bye %d" % number])
        assert await receive_all(b, Lane.CONTROL, 20) == [[b"bye %d" % number] for number in range(20)]


@trio_test
async def test_moving_to_another_address_keeps_the_lanes_that_stay():
    async with open_zmq_transport(A, 1) as a, open_zmq_transport(B, 1) as b, open_zmq_transport(B, 2) as moved:
        a.connect(B, b.endpoints)
        a.post(B, Lane.CONTROL, [b"1"])
        await b.receive(Lane.CONTROL)
        mixed = Endpoints("127.0.0.1", b.endpoints.control_port, moved.endpoints.data_port)
        a.connect(B, mixed)
        a.post(B, Lane.CONTROL, [b"2"])
        a.post(B, Lane.DATA, [b"3"])
        assert contents(await b.receive(Lane.CONTROL)) == [b"2"]
        assert contents(await moved.receive(Lane.DATA)) == [b"3"]
        with pytest.raises(UnreachableError, match="bulk lane"):
            a.post(B, Lane.BULK, [b"4"])


@trio_test
async def test_connections_that_are_closed_before_they_stand_stop_nobody():
    async with open_zmq_transport(A, 1) as a, open_zmq_transport(B, 1) as b:
        for _ in range(50):
            a.connect(B, b.endpoints)
            a.disconnect(B)
        a.connect(B, b.endpoints)
        a.post(B, Lane.DATA, [b"still here"])
        assert contents(await b.receive(Lane.DATA)) == [b"still here"]


@trio_test
async def test_opening_and_closing_leaks_no_descriptors():
    from pathlib import Path

    def count():
        return len(list(Path("/proc/self/fd").iterdir()))

    async def once():
        async with open_zmq_transport(A, 1) as a, open_zmq_transport(B, 1) as b:
            for _ in range(3):
                a.connect(B, b.endpoints)
                for lane in Lane:
                    await a.send(B, lane, [bytes(100_000)])
                    await b.receive(lane)
                a.disconnect(B)

    await once()
    before = count()
    for _ in range(5):
        await once()
    await until(lambda: count() <= before)
