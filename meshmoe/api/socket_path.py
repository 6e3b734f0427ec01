"""Where the local socket is: one rule for the node that makes it and the commands that look for it."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from meshmoe.core.errors import ConfigError

SOCKET_VARIABLE = "MESHMOE_SOCKET"
SOCKET_NAME = "meshmoe.sock"
PATH_BYTES_MAX = 107
"""Of a Unix socket on Linux: sockaddr_un has 108 bytes, the last of which is a zero."""


def default_socket_path() -> Path:
    """The path to use where none is given.

    ``$MESHMOE_SOCKET``; else ``meshmoe/meshmoe.sock`` under the user's runtime directory, which systemd makes private
    to the user and empties at logout; where there is none, ``meshmoe-UID/meshmoe.sock`` under the temporary directory.
    """
    named = os.environ.get(SOCKET_VARIABLE)
    if named:
        return Path(named)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_absolute() and Path(runtime).is_dir():
        return Path(runtime) / "meshmoe" / SOCKET_NAME
    return Path(tempfile.gettempdir()) / f"meshmoe-{os.getuid()}" / SOCKET_NAME


def check_length(path: Path) -> None:
    """Refuse a path that the kernel would refuse with less to say.

    Raises:
        ConfigError: It is too long.
    """
    length_bytes = len(os.fsencode(path))
    if length_bytes > PATH_BYTES_MAX:
        raise ConfigError(
            f"socket path {path} has {length_bytes} bytes, a Unix socket allows {PATH_BYTES_MAX}: "
            "give a shorter one with --socket"
        )


def prepare_directory(path: Path) -> None:
    """Make the directory of the socket ``path``, private to this user, if it is not there.

    Raises:
        ConfigError: It cannot be made, or what stands at the default place belongs to somebody else.
    """
    directory = path.parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = directory.lstat()
    except OSError as error:
        raise ConfigError(
            f"cannot make the directory {directory} of the socket: {error.strerror}: give another path with --socket"
        ) from error
    if path == Path(tempfile.gettempdir()) / f"meshmoe-{os.getuid()}" / SOCKET_NAME and (
        # Anybody may make a directory of this name under /tmp first, or a link to one.
        not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077
    ):
        raise ConfigError(f"{directory} is not a private directory of this user: give another path with --socket")
