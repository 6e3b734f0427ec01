"""Everything that ``meshmoe join`` was told, checked and with defaults filled in."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from meshmoe.core.config import Capacity, Profile
from meshmoe.core.ids import NodeId, node_id
from meshmoe.core.links import LinkShape
from meshmoe.core.token import Contact
from meshmoe.engine.drafts.mode import AUTO, DraftMode

DEFAULT_PORT = 7337
"""Of the control lane; the data and bulk lanes listen on the next two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What a node is started with.

    Attributes:
        node: Its name.
        peers: For each ``--peer`` whom to join through.
        listen: Host and control port; port 0 takes three free ones, None the default port, or free ones if it is taken.
        advertise: Host under which peers reach this node; None finds it out.
        model: Checkpoint directory; None takes the mesh's model, or the bundled one to start a mesh.
        capacity: For experts; None measures what the box can spare.
        threads: Compute threads.
        kv_cache_bytes: Room for the keys and values of all requests; None for the engine's default.
        decode: ``auto``, ``lean`` or ``generic``: how the model is computed (`load_moe_model`).
        drafts: How tokens are guessed ahead.
        device: ``cpu``, or ``cuda``: where forwards are computed and experts lie.
        dtype: ``auto`` (the checkpoint's own), ``float32``, ``bfloat16`` or ``float16``.
        socket_path: The local socket.
        http: Host and port of the API; None for the socket alone.
        api_key: What requests over TCP must bring; None asks for none, and then the port is loopback's.
        state_dir: What outlives the node.
        cache_dir: What can be computed again.
        membership: Preset of the failure detector: ``lan`` or ``wan``.
        links: Links to emulate, by peer; empty for real ones.
        links_file: Where they came from, to be read again on demand.
        express: Whether the compute thread serves expert calls itself.
        spin: Whether it may wait awake, where cores are idle.
        hedge: Whether late decode calls go to a second holder, too.
        insecure: Send in the clear, and believe everybody who connects.
        demand_half_life_s: Of what this node remembers of its own use: shorter follows a change of use sooner, and
            moves weights more often.
        spot_check: Share of the experts computed by peers that is computed once more by another one, and compared.
        seed: Of the node's own chance (probe order, jitter of emulated links); None draws one.
    """

    node: NodeId
    peers: tuple[Contact, ...] = ()
    listen: tuple[str, int | None] = ("0.0.0.0", None)
    advertise: str | None = None
    model: Path | None = None
    capacity: Capacity | None = None
    threads: int = 1
    kv_cache_bytes: int | None = None
    decode: Literal["auto", "lean", "generic"] = "auto"
    drafts: DraftMode = AUTO
    device: str = "cpu"
    dtype: str = "auto"
    socket_path: Path
    http: tuple[str, int] | None = None
    api_key: str | None = field(default=None, repr=False)
    state_dir: Path
    cache_dir: Path
    membership: str = "lan"
    links: Mapping[NodeId, LinkShape] = field(default_factory=dict)
    links_file: str | None = None
    express: bool = True
    spin: bool = False
    hedge: bool = False
    insecure: bool = False
    demand_half_life_s: float = 600.0
    spot_check: float = 0.0
    seed: int | None = None


def default_node_name() -> NodeId:
    """This box's host name, made usable."""
    name = re.sub(r"[^a-z0-9._-]", "-", socket.gethostname().split(".")[0].lower()).lstrip("._-")[:63]
    return node_id(name or "node")


def capacity_of(flag: Capacity | None, profile: Profile | None) -> Capacity | None:
    """The flag's, else the profile's."""
    if flag is not None or profile is None:
        return flag
    return profile.parsed_capacity()
