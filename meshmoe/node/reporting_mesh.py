"""The part of a node's status that tells of the mesh: nodes, links, and who holds what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from meshmoe import __version__
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.engine.pool import ExpertPool
from meshmoe.gossip import Link
from meshmoe.gossip.view import View
from meshmoe.membership import Member, MemberState
from meshmoe.node.status import CoverageStatus, LinkStatus, PeerStatus

if TYPE_CHECKING:
    from meshmoe.node.node import Node
    from meshmoe.node.parts import Parts


def peer_statuses(node: Node, parts: Parts) -> list[PeerStatus]:
    """All known nodes, this one first, then by name."""
    pool, own = node.pool, parts.gossip.view.nodes.get(node.settings.node)
    me = PeerStatus(
        node=node.settings.node,
        state="joining" if pool is None else "alive",
        is_self=True,
        address=parts.endpoints.address(),
        capacity_bytes=pool.capacity_bytes if pool is not None else 0,
        held_bytes=pool.used_bytes if pool is not None else 0,
        experts_held=len(pool.experts()) if pool is not None else 0,
        software=__version__,
        expert_call_us=own.info.expert_call_us if own is not None and own.info is not None else 0,
    )
    members = parts.membership.machine.members
    return [me, *(_peer(parts, members[name]) for name in sorted(members))]


def _peer(parts: Parts, member: Member) -> PeerStatus:
    name = member.node
    view = parts.gossip.view.nodes.get(name)
    info, load = (view.info, view.load) if view is not None else (None, None)
    rtt = parts.membership.machine.rtt(name)
    traffic = parts.messenger.transport.stats(name)
    state = member.state.name.lower()
    if member.state is MemberState.ALIVE and (info is None or info.state != "serving"):
        state = "leaving" if info is not None and info.state == "leaving" else "joining"
    return PeerStatus(
        node=name,
        state=state,
        is_self=False,
        address=member.endpoints.address(),
        capacity_bytes=info.capacity_bytes if info else 0,
        held_bytes=load.expert_bytes_held if load else 0,
        experts_held=sum(byte.bit_count() for bitmap in view.holdings.values() for byte in bitmap) if view else 0,
        rtt_ms=round(rtt.median_ms, 3) if rtt else None,
        rate_bytes_per_s=parts.mesh.rates.bytes_per_s(name),
        sent_bytes=traffic.sent_bytes,
        received_bytes=traffic.received_bytes,
        expert_calls=parts.expert_client.calls_by_peer[name],
        software=info.software if info else "",
        expert_call_us=info.expert_call_us if info else 0,
    )


CoverageKey = tuple[int, int, tuple[NodeId, ...]]


def coverage_status(node: Node, parts: Parts) -> CoverageStatus | None:
    """Who holds what; None until the model is loaded.

    Made anew only when holders, residents or members have changed: for a model of 6,144 experts it takes 13 ms of the
    event loop, and is asked for every second by whoever watches.
    """
    machine = parts.custody.machine
    if machine is None or node.pool is None or node.model is None:
        return None
    members = tuple(sorted(parts.membership.machine.members))
    # A change of residents is published at once, so that the view's version tells of it too.
    key = (parts.gossip.view.holders_version, node.pool.used_bytes, members)
    if node.coverage is None or node.coverage[0] != key:
        node.coverage = (
            key,
            _coverage(node.model.experts, node.pool, parts.gossip.view, (node.settings.node, *members)),
        )
    return msgspec.structs.replace(node.coverage[1], missing_bytes=machine.missing_bytes)


def _coverage(experts: Iterable[ExpertId], pool: ExpertPool, view: View, names: tuple[NodeId, ...]) -> CoverageStatus:
    place = {name: i for i, name in enumerate(names)}
    by_layer: list[list[list[int]]] = []
    for expert in sorted(experts):
        holders = {place[name] for name in view.holders(expert) if name in place}
        if expert in pool:
            holders.add(0)
        while len(by_layer) <= expert.layer:
            by_layer.append([])
        by_layer[expert.layer].append(sorted(holders))
    counts = [len(holders) for layer in by_layer for holders in layer]
    covered = sum(count > 0 for count in counts)
    return CoverageStatus(
        covered=covered,
        total=len(counts),
        replicas_mean=sum(counts) / covered if covered else 0.0,
        missing_bytes=0,
        holder_map_digest=view.holder_digest().hex(),
        holders_by_layer=by_layer,
    )


def link_statuses(parts: Parts) -> list[LinkStatus]:
    """Links between present nodes, as measured by this node, else as an end of them tells."""
    view, me = parts.gossip.view, parts.mesh.node
    found: dict[tuple[str, str], LinkStatus] = {}
    for name in (me, *sorted(view.nodes.keys() - {me})):
        links = _own_links(parts) if name == me else (view.nodes[name].links if name in view.nodes else {})
        for peer, link in links.items():
            pair = (min(name, peer), max(name, peer))
            if peer in view.nodes and pair not in found:
                rate = link.rate_bytes_per_s or None
                found[pair] = LinkStatus(nodes=pair, rtt_ms=link.rtt_us / 1000, rate_bytes_per_s=rate)
            elif pair in found and found[pair].rate_bytes_per_s is None and link.rate_bytes_per_s:
                found[pair].rate_bytes_per_s = link.rate_bytes_per_s
    return [found[pair] for pair in sorted(found)]


def _own_links(parts: Parts) -> dict[NodeId, Link]:
    links = {}
    for peer in parts.membership.present():
        rtt = parts.membership.machine.rtt(peer)
        if rtt is not None:
            links[peer] = Link(peer, round(rtt.median_ms * 1000), round(parts.mesh.rates.bytes_per_s(peer) or 0))
    return links
