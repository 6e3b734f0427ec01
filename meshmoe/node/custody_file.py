"""The custody state on disk: read at the start of a life, replaced whole before what depends on it is sent.

A file that is damaged, or another model's or node's, is set aside with one line in the log: the node then rejoins
empty, which the custody rule allows. A disk that cannot be written costs a line and a counter, not the node: no
expert's safety hangs on the file (see `meshmoe.custody.state`).
"""

from __future__ import annotations

import logging
from pathlib import Path

from meshmoe.core.errors import CheckpointError, MeshmoeError
from meshmoe.core.ids import NodeId
from meshmoe.custody import CustodyState, check_state, decode_state
from meshmoe.model.unit_files import write_whole

logger = logging.getLogger(__name__)


class CustodyFile:
    """``custody.msgpack`` in a node's state directory."""

    def __init__(self, directory: Path) -> None:
        """Look at what an earlier life left; nothing is written yet.

        Args:
            directory: The node's state directory; it need not exist.
        """
        self.path = directory / "custody.msgpack"
        self.write_failures = 0
        self._state = self._read()

    @property
    def last_generation(self) -> int:
        """Of the last life that wrote the file, whatever its model; 0 when there is none."""
        return self._state.generation if self._state is not None else 0

    def state_for(self, model_digest: str, node: NodeId) -> CustodyState | None:
        """What an earlier life of this node left for this model; None when nothing, with a line in the log."""
        if self._state is None:
            return None
        try:
            check_state(self._state, model_digest=model_digest, node=node)
        except CheckpointError as error:
            logger.warning("%s: %s", self.path, error)
            return None
        return self._state

    def write(self, state: CustodyState) -> None:
        """Replace the file durably; blocks. A failure is logged and counted."""
        try:
            write_whole(self.path, state.encode())
        except MeshmoeError as error:
            self.write_failures += 1
            if self.write_failures & (self.write_failures - 1) == 0:
                logger.error("the custody state cannot be kept (%d times so far): %s", self.write_failures, error)

    def _read(self) -> CustodyState | None:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("%s cannot be read (%s): rejoining without it", self.path, error.strerror)
            return None
        try:
            return decode_state(data)
        except CheckpointError as error:
            logger.warning("%s: %s", self.path, error)
            return None
