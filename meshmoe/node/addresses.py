"""Under which addresses other boxes can reach this one."""

from __future__ import annotations

import socket

import psutil

_WILDCARDS = ("0.0.0.0", "::")


def advertised_host(listen_host: str, toward: str | None) -> str:
    """The host that peers should connect to.

    Args:
        listen_host: What the node listens on; a wildcard is replaced by a real address.
        toward: A peer that is about to be joined: the address that leads there is the one that leads back.

    Returns:
        An address of this box.
    """
    if listen_host not in _WILDCARDS:
        return listen_host
    if toward is not None:
        try:
            family, _, _, _, address = socket.getaddrinfo(toward, 9, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(address)  # picks a route; nothing is sent
                return str(probe.getsockname()[0])
        except (OSError, UnicodeError):  # no such host, or no host at all: joining will say so
            pass
    found = lan_addresses()
    return found[0] if found else "127.0.0.1"


def lan_addresses() -> list[str]:
    """IPv4 addresses of this box's interfaces that are up, loopback and container bridges last or left out."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = []
    for name, addresses in psutil.net_if_addrs().items():
        if name in up and not name.startswith(("lo", "docker", "br-", "veth", "virbr")):
            found += [a.address for a in addresses if a.family == socket.AF_INET and not a.address.startswith("127.")]
    return found
