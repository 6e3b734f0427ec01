"""Discovery on the loopback interface: real multicast, several beacons in one process."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack

import pytest
import trio
from zeroconf import ServiceInfo

from meshmoe.core.errors import JoinError
from meshmoe.core.ids import NodeId
from meshmoe.node import discovery
from meshmoe.node.discovery import SERVICE, Beacon, announced_hosts, open_beacon, read_sighting

HOSTS = ["127.0.0.1"]


@pytest.fixture(autouse=True)
def own_service(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Meshes of other tests on this box are none of this one's."""
    number = abs(hash((request.node.name, socket.gethostname()))) % 10**6
    monkeypatch.setattr(discovery, "SERVICE", f"_mm{number}._tcp.local.")


async def beacon_of(stack: AsyncExitStack, name: str) -> Beacon:
    beacon = await stack.enter_async_context(open_beacon(NodeId(name), HOSTS))
    assert beacon is not None
    return beacon


def test_nobody_there() -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            assert await (await beacon_of(stack, "a")).find_mesh() is None

    trio.run(main)


def test_a_mesh_is_found_and_forgotten() -> None:
    async def main() -> None:
        async with AsyncExitStack() as outer:
            newcomer = await beacon_of(outer, "b")
            async with AsyncExitStack() as inner:
                member = await beacon_of(inner, "a")
                await member.announce(7337, "edge-12m", "d" * 40, needs_token=True)
                found = await newcomer.find_mesh()
                assert found is not None
                assert (found.node, found.address, found.model) == ("a", "127.0.0.1:7337", "edge-12m")
                assert found.needs_token
            with trio.fail_after(5):
                while newcomer._heard:
                    await trio.sleep(0.02)

    trio.run(main)


def test_boxes_switched_on_together_make_one_mesh() -> None:
    async def main() -> None:
        found: dict[str, str | None] = {}

        async def box(stack: AsyncExitStack, name: str, nursery: trio.Nursery) -> None:
            beacon = await beacon_of(stack, name)
            sighting = await beacon.find_mesh()
            found[name] = None if sighting is None else sighting.node
            if sighting is None:
                await trio.sleep(0.5)
                await beacon.announce(7000, "m", "d" * 40, needs_token=False)

        async with AsyncExitStack() as stack:
            async with trio.open_nursery() as nursery:
                for name in ("a", "b", "c"):
                    nursery.start_soon(box, stack, name, nursery)
            (starter,) = (name for name, whom in found.items() if whom is None)
            assert {whom for name, whom in found.items() if name != starter} == {starter}

    trio.run(main)


def test_several_meshes_are_not_guessed_between() -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            for name, mesh in (("a", "1" * 40), ("b", "2" * 40)):
                member = await beacon_of(stack, name)
                await member.announce(7000, f"model-{name}", mesh, needs_token=False)
            newcomer = await beacon_of(stack, "c")
            with pytest.raises(JoinError, match=r"there are 2 meshes on this network: .*choose one with --peer"):
                await newcomer.find_mesh()

    trio.run(main)


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"node": "a"},
        {"node": "../etc", "began": "1"},
        {"node": "a", "began": "soon"},
        {"node": "a", "began": "1", "model": "\x1b[2J"},
        {"node": b"\xff\xfe", "began": "1"},
    ],
)
def test_announcements_that_make_no_sense_are_not_heard(properties: dict[str, str | bytes]) -> None:
    address = [socket.inet_aton("10.0.0.1")]
    info = ServiceInfo(SERVICE, f"x.{SERVICE}", addresses=address, port=1, properties=properties)
    assert read_sighting(info) is None
    good = {"node": "a", "began": "1", "mesh": "m"}
    assert read_sighting(ServiceInfo(SERVICE, f"x.{SERVICE}", addresses=address, port=1, properties=good)) is not None
    assert read_sighting(ServiceInfo(SERVICE, f"x.{SERVICE}", port=1, properties=good)) is None


def test_where_a_node_can_be_announced() -> None:
    assert announced_hosts("10.0.0.1", None) == ["10.0.0.1"]
    assert announced_hosts("::1", None) == []
    assert announced_hosts("0.0.0.0", "10.1.2.3") == ["10.1.2.3"]
    assert announced_hosts("0.0.0.0", "box.lan") == ["127.0.0.1"]
