"""The optional TCP port: for programs that cannot open a Unix socket; with a key, for those of other machines too."""

from __future__ import annotations

import errno
import ipaddress
import socket

from meshmoe.core.errors import ConfigError


def is_loopback_name(name: str) -> bool:
    """Whether ``name`` can only mean this machine: an address of the loopback net, or ``localhost``."""
    if name.lower() == "localhost" or name.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def parse_http_address(text: str, *, keyed: bool = False) -> tuple[str, int]:
    """Read ``HOST:PORT``, or ``PORT`` alone for 127.0.0.1; port 0 means any free one.

    Args:
        text: What the user wrote.
        keyed: Whether requests must bring an API key; only then may other machines reach the port.

    Raises:
        ConfigError: It is not an address, or not one of this machine's loopback net and there is no key.
    """
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise ConfigError(f"{text!r} is not an address for HTTP: write it like 127.0.0.1:8080")
    if not keyed and not is_loopback_name(host):
        raise ConfigError(
            f"without a key HTTP is served on this machine only, not on {host!r}: use 127.0.0.1:{port}, or give a key "
            "with --api-key-file"
        )
    return ("127.0.0.1" if host.lower().endswith("localhost") else host), int(port)


def listen_http(host: str, port: int, *, keyed: bool = False) -> socket.socket:
    """Open a listening TCP socket.

    Args:
        host: An address, or a name of this machine.
        port: 0 takes a free one.
        keyed: As `parse_http_address` has it.

    Raises:
        ConfigError: The host is not allowed, or the port is taken or not allowed.
    """
    host, port = parse_http_address(f"[{host}]:{port}", keyed=keyed)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
        listener.setblocking(False)
    except (OSError, UnicodeError) as error:
        listener.close()
        if isinstance(error, UnicodeError):
            raise ConfigError(f"{host!r} is no host: give an address of this box with --http") from error
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} of {host} is in use: give another with --http") from error
        raise ConfigError(f"HTTP cannot listen on {host}:{port}: {error.strerror}") from error
    return listener
