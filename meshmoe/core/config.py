"""The schema of profiles (``nodes/*.toml``) and topology files (``topology/*.toml``), the one place that reads them.

The same files drive ``meshmoe demo``, ``meshmoe join --profile``, the tests and the planning tools. Quantities are
written with their unit (``"5GiB"``, ``"500Mbit/s"``, ``"1.2ms"``, ``"40%"``), so that no reader has to guess. A file is
validated whole: an unknown key, a missing unit or a link to a node that is not there is one clear line.
"""

from __future__ import annotations

import difflib
import tomllib
from typing import Any, get_type_hints

import msgspec

from meshmoe.core.errors import ConfigError
from meshmoe.core.ids import NodeId, node_id
from meshmoe.core.links import LINK_PRESETS, LinkShape
from meshmoe.core.units import parse_duration, parse_rate, parse_share, parse_size


class Capacity(msgspec.Struct, frozen=True):
    """How much a node may hold: a number of bytes, or a share of all routed experts of whatever model it serves."""

    size_bytes: int | None = None
    share: float | None = None

    def resolve(self, expert_bytes_total: int) -> int:
        """The capacity in bytes for a model whose routed experts take ``expert_bytes_total``."""
        if self.size_bytes is not None:
            return self.size_bytes
        assert self.share is not None
        return round(self.share * expert_bytes_total)


def parse_capacity(text: str) -> Capacity:
    """Read a capacity: a size (``400MiB``) or a share of the model's experts (``40%``).

    Raises:
        ConfigError: It is neither.
    """
    if text.strip().endswith("%"):
        return Capacity(share=parse_share(text))
    try:
        return Capacity(size_bytes=parse_size(text))
    except ConfigError:
        raise ConfigError(f"capacity {text!r}: write a size like 400MiB or a share of the experts like 40%") from None


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a box is. A live node measures itself; what a profile states overrides the measurement.

    Attributes:
        description: For people.
        source: Where the numbers come from.
        memory: RAM of the box (or of its accelerator, when experts live there).
        capacity: What may be used for experts.
        threads: Compute threads.
        memory_rate: Read bandwidth of that memory.
        disk_rate: Read bandwidth of the disk that holds the checkpoint.
        power: Watts under load, for people who plan.
    """

    description: str = ""
    source: str = ""
    memory: str | None = None
    capacity: str | None = None
    threads: int | None = None
    memory_rate: str | None = None
    disk_rate: str | None = None
    power: int | None = None

    @property
    def memory_bytes(self) -> int | None:
        """``memory`` in bytes."""
        return None if self.memory is None else parse_size(self.memory)

    @property
    def memory_rate_bytes_per_s(self) -> float | None:
        """``memory_rate`` in bytes a second."""
        return None if self.memory_rate is None else parse_rate(self.memory_rate)

    @property
    def disk_rate_bytes_per_s(self) -> float | None:
        """``disk_rate`` in bytes a second."""
        return None if self.disk_rate is None else parse_rate(self.disk_rate)

    def parsed_capacity(self) -> Capacity | None:
        """``capacity``, read."""
        return None if self.capacity is None else parse_capacity(self.capacity)


class LinkTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One link as a topology file writes it: a preset, single values, or a preset with values changed."""

    preset: str | None = None
    rtt: str | None = None
    rate: str | None = None
    jitter: str | None = None
    loss: str | None = None

    def shape(self) -> LinkShape:
        """The link in SI units.

        Raises:
            ConfigError: Unknown preset, a value without a unit, or neither preset nor both rtt and rate.
        """
        if self.preset is not None and self.preset not in LINK_PRESETS:
            raise ConfigError(f"link preset {self.preset!r} is not known: use one of {', '.join(LINK_PRESETS)}")
        base = LINK_PRESETS[self.preset] if self.preset is not None else None
        if base is None and (self.rtt is None or self.rate is None):
            raise ConfigError("a link needs a preset, or both rtt and rate")
        loss = parse_share(self.loss) if self.loss is not None else (base.loss if base else 0.0)
        if not 0 <= loss < 1:
            raise ConfigError(f"loss {self.loss!r} is out of range: 0% to less than 100%")
        return LinkShape(
            rtt_s=parse_duration(self.rtt) if self.rtt is not None else base.rtt_s if base else 0.0,
            rate_bytes_per_s=parse_rate(self.rate) if self.rate is not None else base.rate_bytes_per_s if base else 0.0,
            jitter_s=parse_duration(self.jitter) if self.jitter is not None else base.jitter_s if base else 0.0,
            loss=loss,
        )


class LinkEntry(LinkTable, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link between two named nodes."""

    between: tuple[str, str]


class TopologyNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node of a topology file.

    Attributes:
        profile: Name of a file in ``nodes/`` without its ending.
        capacity: Overrides the profile's.
        threads: Overrides the profile's.
        domain: What this box is mostly asked for; ``meshmoe demo`` picks its prompts by it.
    """

    profile: str | None = None
    capacity: str | None = None
    threads: int | None = None
    domain: str | None = None


class TopologyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A topology file as written; `parse_topology` checks it and gives a `Topology`.

    Attributes:
        description: For people.
        source: Where the numbers come from.
        default_link: The link of every pair that ``links`` does not name; without it such pairs are not linked.
        nodes: By name, in the order of joining.
        links: Named pairs.
    """

    description: str = ""
    source: str = ""
    default_link: LinkTable | None = None
    nodes: dict[str, TopologyNode]
    links: list[LinkEntry] = []


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """A checked topology: nodes in order, and the shape of every link, by unordered pair (names sorted)."""

    name: str
    description: str
    nodes: dict[NodeId, TopologyNode]
    links: dict[tuple[NodeId, NodeId], LinkShape]

    def links_of(self, node: NodeId) -> dict[NodeId, LinkShape]:
        """The links of one node, by the other end."""
        return {(b if a == node else a): shape for (a, b), shape in self.links.items() if node in (a, b)}


def _convert(text: str, where: str, cls: type[Any]) -> Any:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from None
    try:
        return msgspec.convert(data, cls)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_explain(str(error), cls)}") from None


def _explain(message: str, cls: type[Any]) -> str:
    """Turn msgspec's words into ours, with the nearest known key for an unknown one."""
    head, _, path = message.partition(" - at `$")
    place = path.rstrip("`").strip(".")
    at = f" in {place}" if place else ""
    if head.startswith("Object contains unknown field"):
        key = head.split("`")[1]
        known = sorted(_keys(cls))
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {key!r}{at}: {hint}"
    return f"{head[0].lower()}{head[1:]}{at}"


def _keys(cls: type[Any]) -> set[str]:
    keys: set[str] = set()
    nested = {TopologyFile: (TopologyNode, LinkEntry)}
    for struct in (cls, *nested.get(cls, ())):
        keys |= set(get_type_hints(struct))
    return {key for key in keys if not key.startswith("_")}


def parse_profile(text: str, where: str) -> Profile:
    """Read and check a profile.

    Args:
        text: TOML.
        where: The file's name, for messages.

    Raises:
        ConfigError: One line that names file, key and what to do.
    """
    profile: Profile = _convert(text, where, Profile)
    try:
        _ = profile.memory_bytes, profile.memory_rate_bytes_per_s, profile.disk_rate_bytes_per_s
        profile.parsed_capacity()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if profile.threads is not None and profile.threads < 1:
        raise ConfigError(f"{where}: threads must be at least 1, not {profile.threads}")
    return profile


def parse_topology(text: str, where: str) -> Topology:
    """Read and check a topology file.

    Args:
        text: TOML.
        where: The file's name, for messages; its stem becomes the topology's name.

    Raises:
        ConfigError: One line that names file, key and what to do.
    """
    raw: TopologyFile = _convert(text, where, TopologyFile)
    if not raw.nodes:
        raise ConfigError(f"{where}: a topology needs at least one node: add [nodes.NAME]")
    try:
        names = [node_id(name) for name in raw.nodes]
        links: dict[tuple[NodeId, NodeId], LinkShape] = {}
        if raw.default_link is not None:
            shape = raw.default_link.shape()
            links = {_pair(a, b): shape for i, a in enumerate(names) for b in names[i + 1 :]}
        for entry in raw.links:
            for end in entry.between:
                if end not in raw.nodes:
                    raise ConfigError(f"link between {entry.between[0]} and {entry.between[1]}: no node {end!r}")
            if entry.between[0] == entry.between[1]:
                raise ConfigError(f"link between {entry.between[0]} and itself")
            links[_pair(NodeId(entry.between[0]), NodeId(entry.between[1]))] = entry.shape()
        for node in raw.nodes.values():
            if node.capacity is not None:
                parse_capacity(node.capacity)
            if node.threads is not None and node.threads < 1:
                raise ConfigError(f"threads must be at least 1, not {node.threads}")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    stem = where.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".toml")
    return Topology(
        name=stem,
        description=raw.description,
        nodes={NodeId(name): node for name, node in raw.nodes.items()},
        links=links,
    )


def _pair(a: NodeId, b: NodeId) -> tuple[NodeId, NodeId]:
    return (a, b) if a <= b else (b, a)
