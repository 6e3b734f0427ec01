"""Binding the three lanes, and writing addresses as ZeroMQ wants them."""

from __future__ import annotations

import errno
import re

import zmq

from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.core.errors import ConfigError
from meshmoe.transport.base import UnreachableError
from meshmoe.transport.keyring import Keyring
from meshmoe.transport.zmq_knobs import ZmqKnobs

PORT_MAX = 65535

# Names, IPv4 and IPv6 addresses (with a zone). ZeroMQ gives meaning to other characters, such as ``;`` for the source
# address, and hosts come from the network.
_HOST = re.compile(r"[0-9A-Za-z._:-]+(%[0-9A-Za-z._-]+)?\Z")


def zmq_address(host: str, port: int | str) -> str:
    """``tcp://host:port``, with brackets around IPv6.

    Raises:
        UnreachableError: ``host`` is neither a name nor an address.
    """
    if not _HOST.match(host):
        raise UnreachableError(f"{host[:100]!r} is neither a host name nor an address")
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def bind_lanes(
    context: zmq.Context[zmq.Socket[bytes]], host: str, port: int, knobs: ZmqKnobs, keyring: Keyring | None
) -> tuple[Endpoints, dict[Lane, zmq.Socket[bytes]]]:
    """Bind a ROUTER a lane: control on ``port``, data and bulk on the next two; all on free ports if ``port`` is 0.

    Raises:
        ConfigError: One of them cannot be listened on; none is left open then.
    """
    if port and port + len(Lane) - 1 > PORT_MAX:
        raise ConfigError(
            f"cannot listen on port {port}: three in a row are needed, so {PORT_MAX - len(Lane) + 1} is the last"
        )
    bound: dict[Lane, zmq.Socket[bytes]] = {}
    try:
        for lane in Lane:
            raw = bound[lane] = context.socket(zmq.ROUTER)
            knobs.apply_receiving(raw, lane, keyring)
            _bind(raw, host, port + lane if port else 0, lane)
        ports = [_bound_port(raw) for raw in bound.values()]
    except BaseException:
        for raw in bound.values():
            raw.close()
        raise
    return Endpoints(host, *ports), bound


def _bind(raw: zmq.Socket[bytes], host: str, port: int, lane: Lane) -> None:
    try:
        raw.bind(zmq_address(host, port or "*"))
    except UnreachableError as error:
        raise ConfigError(f"cannot listen: {error}") from None
    except zmq.ZMQError as error:
        where = f"port {port} of {host} ({lane.name.lower()} lane)" if port else f"{host}"
        raise ConfigError(f"cannot listen on {where}: {_advice(error)}") from None


def _bound_port(raw: zmq.Socket[bytes]) -> int:
    endpoint = raw.get(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return int(endpoint.rstrip(b"\0").rpartition(b":")[2])


def _advice(error: zmq.ZMQError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "another program has it; stop that one, or listen on another port (three in a row are needed)"
        case errno.EACCES:
            return "this user may not; ports from 1024 on are free for all"
        case errno.EADDRNOTAVAIL | errno.ENODEV | errno.EINVAL:
            return "this machine has no such address; 0.0.0.0 listens on all that it has"
        case _:
            return str(error)
