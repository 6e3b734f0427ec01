"""meshmoe: one Mixture-of-Experts language model served by a leaderless mesh of unequal edge boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshmoe.client import connect, connect_async

__version__ = "0.1.0"

__all__ = ["__version__", "connect", "connect_async"]


def __getattr__(name: str) -> Any:
    """The client, imported when it is asked for: the node and the commands do without it."""
    if name in ("connect", "connect_async"):
        from meshmoe import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
