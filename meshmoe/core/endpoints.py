"""Where a node listens, and on which of its connections a message travels."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import msgspec
from msgspec import Meta

Host = Annotated[str, Meta(min_length=1, max_length=253)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class Lane(IntEnum):
    """Which connection a parcel takes; each lane is its own, so that weights never stand in front of probes."""

    CONTROL = 0
    DATA = 1
    BULK = 2


class Endpoints(msgspec.Struct, frozen=True, array_like=True):
    """One host, one TCP port a lane; port 0 means that the lane is not known (yet)."""

    host: Host
    control_port: Port
    data_port: Port = 0
    bulk_port: Port = 0

    def port(self, lane: Lane) -> int:
        """The TCP port of ``lane``."""
        return (self.control_port, self.data_port, self.bulk_port)[lane]

    def address(self, lane: Lane = Lane.CONTROL) -> str:
        """``host:port`` of ``lane``, as a person writes it (IPv6 hosts in brackets)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port(lane)}"
