"""Every error that a user or a peer can cause.

A message is one line that says what is wrong, where, and what to do about it. The command line prints it after
``meshmoe:`` and exits with ``exit_code``; the API puts it into an OpenAI error object with ``http_status``.
"""

from __future__ import annotations


class MeshmoeError(Exception):
    """Base of all errors with a message meant for people."""

    exit_code = 1
    http_status = 500
    kind = "server_error"

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class ConfigError(MeshmoeError):
    """A flag, profile or topology file that cannot be used."""

    exit_code = 2
    http_status = 400
    kind = "invalid_request_error"


class CheckpointError(MeshmoeError):
    """A model directory that is missing, damaged, or not a Mixture of Experts."""

    exit_code = 3


class CapacityError(MeshmoeError):
    """A node, or the whole mesh, that cannot hold what it is asked to hold."""

    exit_code = 4
    http_status = 503
    kind = "capacity_error"


class JoinError(MeshmoeError):
    """A mesh that could not be joined: unreachable, another model, a name already taken."""

    exit_code = 5


class PeerError(MeshmoeError):
    """A peer that did not do what was asked of it: unreachable, too slow, or answering nonsense."""

    http_status = 503
    kind = "mesh_error"


class WireError(PeerError):
    """Bytes from a peer that are not a valid message."""


class ExpertUnavailableError(PeerError):
    """No node that can be reached holds an expert which the request needs."""


class RequestError(MeshmoeError):
    """A client's request that cannot be served as it stands."""

    exit_code = 2
    http_status = 400
    kind = "invalid_request_error"

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, http_status: int = 400
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.http_status = http_status


class OverloadedError(MeshmoeError):
    """Too many requests at once; the client should come back."""

    http_status = 429
    kind = "rate_limit_error"
