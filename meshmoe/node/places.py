"""Where a node keeps what outlives it, by the XDG base directory specification."""

from __future__ import annotations

import os
from pathlib import Path

MESH_FILE = "mesh.msgpack"
"""The secret and the members of a node's mesh, in its state directory."""


def state_dir(node: str) -> Path:
    """What one node must not lose: weights fetched from peers; ``$XDG_STATE_HOME/meshmoe/NODE``."""
    return _base("XDG_STATE_HOME", ".local/state") / "meshmoe" / node


def was_member(state: Path) -> bool:
    """Whether a node with this state directory has belonged to a secured mesh, and has not been expelled from it."""
    return (state / MESH_FILE).exists()


def cache_dir() -> Path:
    """What can be computed again, shared by all nodes of this user: digests of model files."""
    return _base("XDG_CACHE_HOME", ".cache") / "meshmoe"


def data_dir() -> Path:
    """Models that the user has fetched; ``$XDG_DATA_HOME/meshmoe``."""
    return _base("XDG_DATA_HOME", ".local/share") / "meshmoe"


def _base(variable: str, default: str) -> Path:
    named = os.environ.get(variable)
    return Path(named) if named and Path(named).is_absolute() else Path.home() / default
