"""Where a node keeps what outlives it, by the XDG base directory specification."""

from __future__ import annotations

import os
from pathlib import Path


def state_dir(node: str) -> Path:
    """What one node must not lose: weights fetched from peers; ``$XDG_STATE_HOME/meshmoe/NODE``."""
    return _base("XDG_STATE_HOME", ".local/state") / "meshmoe" / node


def cache_dir() -> Path:
    """What can be computed again, shared by all nodes of this user: digests of model files."""
    return _base("XDG_CACHE_HOME", ".cache") / "meshmoe"


def _base(variable: str, default: str) -> Path:
    named = os.environ.get(variable)
    return Path(named) if named and Path(named).is_absolute() else Path.home() / default
