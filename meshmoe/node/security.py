"""A node's key pair and what it keeps of its mesh: two files in the state directory, readable by its user alone.

``node.key`` is made at the first start and stays: it is who this node is. ``mesh.msgpack`` has the mesh's secret and
the roll of members; with it, a node comes back into its mesh without a token.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from meshmoe.admission import AdmissionRecord, MeshSecret, Roll, RollState, new_secret
from meshmoe.core.errors import ConfigError, MeshmoeError
from meshmoe.core.ids import NodeId
from meshmoe.model.unit_files import write_whole
from meshmoe.node.places import MESH_FILE
from meshmoe.transport.keyring import KEY_BYTES, KeyPair, Keyring, new_key_pair

logger = logging.getLogger(__name__)

_PRIVATE = 0o600


class Security:
    """Who this node is, and who belongs to its mesh.

    Attributes:
        keyring: What the transport reads.
        roll: None as long as the node belongs to no mesh.
        heard_now: See `meshmoe.admission.Roll`.
    """

    def __init__(self, node: NodeId, directory: Path) -> None:
        """Read the files, and make the key pair if there is none.

        Raises:
            ConfigError: The key pair cannot be read or kept.
        """
        self._node = node
        self._path = directory / MESH_FILE
        self.write_failures = 0
        self.keyring = Keyring(_own_key_pair(directory / "node.key"))
        self.roll: Roll | None = None
        self.heard_now: Callable[[NodeId], bool] = lambda _: False
        state = self._read()
        if state is not None:
            self.roll = self._make_roll(state)
            self.update_keyring()

    @property
    def key(self) -> bytes:
        """This node's public key."""
        return self.keyring.own.public

    def begin(self) -> Roll:
        """Belong to a mesh: the one that was kept, or a new one that this node founds."""
        if self.roll is None:
            self.roll = self._make_roll(RollState(new_secret()))
        record = self.roll.records.get(self._node)
        if record is None or record.key != self.key:
            self.roll.admit_without_token(self._node, self.key, time.time_ns() // 1_000_000)
        self.update_keyring()
        return self.roll

    def _make_roll(self, state: RollState) -> Roll:
        return Roll(state, lambda node: node == self._node or self.heard_now(node))

    def forget_mesh(self) -> None:
        """Belong to no mesh any more, at the next start; blocks."""
        self.roll = None
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def adopt(self, secret: MeshSecret, member: AdmissionRecord) -> None:
        """Take up what a member has told with its welcome: go over to its mesh, or catch up with a rotation."""
        known = self.roll.records.get(NodeId(member.node)) if self.roll is not None else None
        if self.roll is None or ((known is None or known.key != member.key) and secret != self.roll.secret):
            self.roll = self._make_roll(RollState(secret))
        elif secret.rank > self.roll.secret.rank:
            self.roll.adopt(secret)
        self.roll.admit(member)
        self.update_keyring()

    def update_keyring(self) -> None:
        """Make the keyring what the roll says."""
        assert self.roll is not None
        self.keyring.assign({node: record.key for node, record in self.roll.records.items()})

    def key_at(self, host: str, port: int) -> bytes | None:
        """The key of the member that was last known to listen there."""
        for node, endpoints in self.roll.contacts.items() if self.roll is not None else ():
            if (endpoints.host, endpoints.control_port) == (host, port):
                return self.keyring.key_of(node)
        return None

    def write(self) -> None:
        """Keep the roll on disk; blocks. A failure is logged and counted: the node then needs a token to come back."""
        if self.roll is None:
            return
        try:
            write_whole(self._path, msgspec.msgpack.encode(self.roll.state), _PRIVATE)
        except MeshmoeError as error:
            self.write_failures += 1
            if self.write_failures & (self.write_failures - 1) == 0:
                logger.error("the roll of the mesh cannot be kept (%d times so far): %s", self.write_failures, error)

    def _read(self) -> RollState | None:
        try:
            return msgspec.msgpack.decode(self._path.read_bytes(), type=RollState)
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("%s cannot be read (%s): joining anew needs a token", self._path, error.strerror)
        except (msgspec.MsgspecError, ValueError):
            logger.warning("%s is damaged and set aside: joining anew needs a token", self._path)
        return None


def _own_key_pair(path: Path) -> KeyPair:
    try:
        mode = path.stat().st_mode
        if mode & 0o077:
            logger.warning("%s could be read by others (mode %o): closed now", path, stat.S_IMODE(mode))
            path.chmod(_PRIVATE)
        content = bytes.fromhex(path.read_text("ascii"))
        if len(content) != 2 * KEY_BYTES:
            raise ValueError("wrong length")
        return KeyPair(content[:KEY_BYTES], content[KEY_BYTES:])
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(f"the key of this node cannot be read: {path}: {error.strerror}") from error
    except ValueError:
        raise ConfigError(
            f"{path} is no key of a node: put it back from a backup, or delete it and join anew with a token"
        ) from None
    pair = new_key_pair()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, (pair.public + pair.secret).hex().encode(), _PRIVATE)
    except (MeshmoeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"the key of this node cannot be kept in {path.parent} ({os.fspath(path.name)}): {reason}: give another "
            "directory with --state"
        ) from error
    return pair
