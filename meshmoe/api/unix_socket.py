"""The Unix socket file: made private, taken over from a node that died, never taken from one that lives.

All steps from looking at an old file to listening happen under a lock on the directory, so that two nodes that start at
the same moment cannot both find the file stale and the second delete the first one's new socket.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from meshmoe.api.socket_path import check_length, prepare_directory
from meshmoe.core.errors import ConfigError

LOCK_WAIT_S_MAX = 3.0
PROBE_S_MAX = 1.0
BACKLOG = 128


@contextmanager
def listening_unix_socket(path: Path) -> Iterator[socket.socket]:
    """A listening socket at ``path``, mode 0600; the file goes away with the context if it is still this one.

    Raises:
        ConfigError: The path cannot be used; the message says why and what to do.
    """
    path = path.absolute()
    check_length(path)
    prepare_directory(path)
    with _locked(path.parent):
        _clear(path)
        listener = _listen(path)
    made = path.lstat()
    try:
        yield listener
    finally:
        with suppress(OSError), _locked(path.parent):
            now = path.lstat()
            if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
                path.unlink()
        listener.close()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        # Nobody can connect before listen, so there is no moment at which others could.
        path.chmod(0o600)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot make the socket {path}: {error.strerror}: give another with --socket") from error
    return listener


def _clear(path: Path) -> None:
    """Remove a socket on which nobody listens any more."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"cannot use the socket path {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is not a socket: give another path with --socket")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(PROBE_S_MAX)
    try:
        probe.connect(os.fspath(path))
    except OSError as error:
        if error.errno != errno.ECONNREFUSED:
            # A full backlog, or somebody else's file: either way it is not ours to remove.
            raise ConfigError(
                f"socket {path} cannot be taken over ({error.strerror or error}): give another with --socket"
            ) from error
    else:
        raise ConfigError(
            f"socket {path} is in use by a running node (pid {_peer_pid(probe)}): give another with --socket"
        )
    finally:
        probe.close()
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot remove the stale socket {path}: {error.strerror}") from error


def _peer_pid(connected: socket.socket) -> str:
    credentials = struct.Struct("3i")
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    return str(credentials.unpack(raw)[0])


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock on ``directory``; it is freed by the kernel if this process dies."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline_s = time.monotonic() + LOCK_WAIT_S_MAX
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise ConfigError(f"another process keeps {directory} locked: give another --socket") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)
