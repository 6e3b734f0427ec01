"""One process at a time for a store that a user has named: a node that serves from it, or a command that fetches."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

from meshmoe.core.errors import CheckpointError


def lock_directory(directory: Path, owner: object) -> None:
    """Keep other processes out of a directory until ``owner`` is gone, or this process.

    Args:
        directory: Exists.
        owner: Whose life the lock shares.

    Raises:
        CheckpointError: Another process is in it, or it cannot be opened.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CheckpointError(
            f"{directory} is in use by another node or `meshmoe model fetch`: stop that one, or give another directory"
        ) from None
    except OSError:  # a file system without locks: then it is up to the user
        os.close(descriptor)
        return
    weakref.finalize(owner, os.close, descriptor)
