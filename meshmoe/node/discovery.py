"""Finding a mesh on the local network without being told an address: multicast DNS, by the library zeroconf.

Every node announces one service, first as a *candidate* that looks for a mesh itself, then as a member of one. A
newcomer looks for `LOOK_S`. If it sees a member it joins that member's mesh. If it sees candidates only, boxes were
switched on together: the one that began to look first starts the mesh (ties by name), and the others wait for it. If it
sees nobody, it starts one.

What is heard is a hint from anybody on the network, never trusted: it names addresses to try, and admission decides
there. zeroconf lives on an event loop and threads of its own; here it is only called from worker threads, with
deadlines. Where multicast does not work (another subnet, many container networks), ``--peer`` does.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import trio
from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from meshmoe import __version__
from meshmoe.core.errors import ConfigError, JoinError
from meshmoe.core.ids import NodeId, node_id
from meshmoe.node.addresses import lan_addresses

logger = logging.getLogger(__name__)

SERVICE = "_meshmoe._tcp.local."
LOOK_S = 2.5
"""A responder may hold an answer back for a second after it has multicast it for somebody else (RFC 6762, 6); the first
question leaves within 0.12 s, the second a second later."""

CANDIDATE_WAIT_S = 90.0
"""For the candidate that began first to serve: a slow box imports torch and reads its model in that time."""

CALL_S_MAX = 5.0
SIGHTINGS_MAX = 64
TEXT_CHARS_MAX = 120

Result = TypeVar("Result")


@dataclass(frozen=True)
class Sighting:
    """A node that was heard.

    Attributes:
        node: Its name, as it says.
        host, port: Of its control lane; port 0 for a candidate.
        model: What its mesh serves; empty for a candidate.
        mesh: Tells meshes apart; empty for a candidate.
        software: Its version.
        needs_token: Whether it admits nobody without one.
        began_ms: Wall clock when it began to look.
    """

    node: NodeId
    host: str
    port: int
    model: str
    mesh: str
    software: str
    needs_token: bool
    began_ms: int

    @property
    def address(self) -> str:
        """As a person writes it."""
        return f"{self.host}:{self.port}"


class Beacon(ServiceListener):
    """This node's voice and ear; made by `open_beacon`."""

    def __init__(self, node: NodeId, began_ms: int, hosts: list[str]) -> None:
        self._node = node
        self._began_ms = began_ms
        self._hosts = hosts
        self._instance = f"{node}-{began_ms:x}.{SERVICE}"
        self._heard: dict[str, Sighting] = {}
        """By instance; written by zeroconf's thread, one assignment at a time."""
        self._zeroconf: Zeroconf | None = None

    async def start(self) -> None:
        """Begin to listen, and to announce this node as a candidate.

        Raises:
            OSError: Multicast cannot be used on this box.
        """
        await _bounded(self._start)

    def _start(self) -> None:
        self._zeroconf = Zeroconf(interfaces=[*self._hosts], ip_version=IPVersion.V4Only)
        ServiceBrowser(self._zeroconf, SERVICE, self)
        # The name is one of a kind, so nobody has to be asked whether it is free.
        self._zeroconf.register_service(self._info(0, {}), cooperating_responders=True)

    async def announce(self, port: int, model: str, mesh: str, *, needs_token: bool) -> None:
        """Tell that this node can be joined through."""
        said = {"model": model[:TEXT_CHARS_MAX], "mesh": mesh, "token": str(int(needs_token))}

        def update() -> None:
            assert self._zeroconf is not None
            self._zeroconf.update_service(self._info(port, said))

        try:
            await _bounded(update)
        except (OSError, ZeroconfError) as error:
            logger.warning("cannot announce this node on the network: %s", error)

    async def close(self) -> None:
        """Say goodbye."""
        zeroconf, self._zeroconf = self._zeroconf, None
        if zeroconf is not None:
            with trio.CancelScope(shield=True):
                await _bounded(zeroconf.close)

    async def find_mesh(self) -> Sighting | None:
        """Look for a mesh; None if this node is the one to start it.

        Raises:
            JoinError: There are several, or the one that was to start it did not.
        """
        # Counted from the beginning: time in which modules were imported was time to listen.
        await trio.sleep(max(0.0, LOOK_S - (time.time() - self._began_ms / 1000)))
        deadline = trio.current_time() + CANDIDATE_WAIT_S
        told = False
        while True:
            members = [one for one in self._heard.values() if one.port]
            if members:
                return _only_mesh(members)
            first = min(self._heard.values(), key=_seniority, default=None)
            if first is None or (self._began_ms, self._node) < _seniority(first):
                return None
            if not told:
                told = True
                logger.info("%s at %s looks for a mesh, too, and was first: waiting for it", first.node, first.host)
            if trio.current_time() > deadline:
                raise JoinError(
                    f"{first.node} at {first.host} was to start a mesh but does not: look there, or start one here "
                    "with --no-discovery"
                )
            await trio.sleep(0.1)

    # zeroconf's listener interface, called on its thread.

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """A service was heard."""
        if name == self._instance or (len(self._heard) >= SIGHTINGS_MAX and name not in self._heard):
            return
        info = ServiceInfo(type_, name)
        if info.load_from_cache(zc) or info.request(zc, 1000):
            sighting = read_sighting(info)
            if sighting is not None:
                self._heard[name] = sighting

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """A service has changed."""
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """A service says goodbye."""
        self._heard.pop(name, None)

    def _info(self, port: int, said: dict[str, str]) -> ServiceInfo:
        properties = {"node": self._node, "v": __version__, "began": str(self._began_ms), **said}
        addresses = [socket.inet_aton(host) for host in self._hosts]
        server = f"{self._instance.removesuffix('.' + SERVICE)}.local."
        return ServiceInfo(
            SERVICE, self._instance, addresses=addresses, port=port, properties=properties, server=server
        )


def read_sighting(info: ServiceInfo) -> Sighting | None:
    """What an announcement says, if it makes sense: it may come from anybody."""
    try:
        said = {key.decode(): (value or b"").decode()[:TEXT_CHARS_MAX] for key, value in info.properties.items()}
        hosts = info.parsed_addresses(IPVersion.V4Only)
        host = next((h for h in hosts if not ipaddress.ip_address(h).is_loopback), hosts[0])
        if not all(map(str.isprintable, said.values())):
            return None
        return Sighting(
            node=node_id(said["node"]),
            host=host,
            port=info.port or 0,
            model=said.get("model", ""),
            mesh=said.get("mesh", ""),
            software=said.get("v", ""),
            needs_token=said.get("token") == "1",
            began_ms=int(said["began"]),
        )
    except (KeyError, IndexError, ValueError, UnicodeDecodeError, ConfigError):
        return None


def _seniority(sighting: Sighting) -> tuple[int, str]:
    return sighting.began_ms, sighting.node


def _only_mesh(members: list[Sighting]) -> Sighting:
    """The eldest member, if all are of one mesh."""
    by_mesh = {one.mesh: one for one in sorted(members, key=_seniority, reverse=True)}
    if len(by_mesh) > 1:
        found = "; ".join(f"{one.model} (--peer {one.address})" for one in by_mesh.values())
        raise JoinError(f"there are {len(by_mesh)} meshes on this network: {found}: choose one with --peer")
    return next(iter(by_mesh.values()))


async def _bounded(call: Callable[[], Result]) -> Result:
    """Run a blocking call of the library in a thread, for a limited time."""
    with trio.fail_after(CALL_S_MAX):
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True)


def announced_hosts(listen_host: str, advertise: str | None) -> list[str]:
    """IPv4 addresses under which a node that listens there can be announced; none if there is no such address."""
    if listen_host in ("0.0.0.0", "::"):
        named = [advertise] if advertise is not None else lan_addresses()
        return [host for host in named if _is_v4(host)][:16] or ["127.0.0.1"]
    return [listen_host] if _is_v4(listen_host) else []


def _is_v4(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 4
    except ValueError:
        return False


@asynccontextmanager
async def open_beacon(node: NodeId, hosts: list[str]) -> AsyncIterator[Beacon | None]:
    """Announce this node on the networks of these addresses for as long as the block lasts; None where it cannot be."""
    beacon = Beacon(node, time.time_ns() // 1_000_000, hosts)
    opened: Beacon | None = beacon
    try:
        await beacon.start()
    except (OSError, ZeroconfError, trio.TooSlowError) as error:
        logger.warning("no discovery on this network (%s): use --peer", error or type(error).__name__)
        opened = None
    try:
        yield opened
    finally:
        await beacon.close()
