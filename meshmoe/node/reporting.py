"""Makes the status of a node out of what its parts know."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from meshmoe import __version__
from meshmoe.core.errors import CapacityError, MeshmoeError, OverloadedError
from meshmoe.core.units import format_size
from meshmoe.membership import Member, MemberState
from meshmoe.node.addresses import lan_addresses
from meshmoe.node.measure import rss_bytes
from meshmoe.node.status import CoverageStatus, CustodyStatus, ModelStatus, NodeStatus, PeerStatus, TransferStatus

if TYPE_CHECKING:
    from meshmoe.node.node import Node
    from meshmoe.node.parts import Parts


LOST_SHOWN_MAX = 64
"""Names of lost experts in the status; all of them are counted."""


class NotReadyError(OverloadedError):
    """The node will serve soon, or no more."""

    http_status = 503
    kind = "server_error"


def readiness_problem(node: Node) -> MeshmoeError | None:
    """What stands against serving a request now; None when nothing does."""
    if node.phase == "leaving":
        return NotReadyError(f"node {node.settings.node} is leaving the mesh: ask another node")
    if node.parts is None or node.serving.engine is None or node.pool is None or node.model is None:
        return NotReadyError(f"node {node.settings.node} is {node.phase}: try again in a moment")
    custody = node.parts.custody
    held = node.parts.gossip.view.holder_map()
    lacking = [e for e in node.model.experts if e not in held and e not in node.pool]
    # What is lost for good must not keep the rest from being served: requests that need it get an error naming it.
    if not lacking or custody.lost.issuperset(lacking):
        return None
    missing_bytes = custody.machine.missing_bytes if custody.machine is not None else 0
    if missing_bytes:
        return CapacityError(
            f"the mesh cannot hold the whole model: {format_size(missing_bytes)} ({missing_bytes} bytes) of "
            f"capacity are missing, {len(lacking)} experts have no place; start another node, or give the nodes more "
            "with --capacity"
        )
    return NotReadyError(
        f"{len(lacking)} of {len(node.model.experts)} experts are still being loaded: try again in a moment"
    )


def node_status(node: Node) -> NodeStatus:
    """The whole status."""
    parts = node.parts
    problem = readiness_problem(node)
    served = parts.expert_server.rows_served if parts else 0
    hedging = parts.expert_client.hedging if parts else None
    return NodeStatus(
        node=node.settings.node,
        generation=node.generation,
        software=__version__,
        uptime_s=time.time() - node.generation / 1000,
        phase=node.phase,
        rss_bytes=rss_bytes(),
        model=_model(node),
        peers=_peers(node, parts) if parts else [],
        coverage=_coverage(node, parts) if parts else None,
        serving=node.serving.status(problem is None, str(problem or ""), served, hedging),
        transfers=_transfers(node),
        experts_wanted=len(parts.custody.wanted) if parts else 0,
        custody=_custody(parts) if parts else None,
        loop_late_p99_ms=round(1e3 * parts.membership.loop_late_p99_s(), 3) if parts else 0.0,
        join_command=join_command(node, parts) if parts else "",
        faults=dict(parts.messenger.faults) if parts else {},
        secured=not node.settings.insecure,
        members=len(node.security.roll.records) if node.security is not None and node.security.roll is not None else 0,
    )


def join_command(node: Node, parts: Parts) -> str:
    """What to type on another box: with a token, or an address in an insecure mesh."""
    admission = parts.admission
    if admission is None:
        return f"meshmoe join --insecure --peer {parts.endpoints.address()}"
    if admission.security.roll is None:
        return ""
    word = admission.word(admission.standing_ticket(), own_addresses(node, parts))
    return f"meshmoe join --peer {word}"


def own_addresses(node: Node, parts: Parts) -> list[tuple[str, int]]:
    """Where other boxes may reach this node, best first."""
    hosts = [parts.endpoints.host]
    if node.settings.listen[0] in ("0.0.0.0", "::") and node.settings.advertise is None:
        hosts += [host for host in lan_addresses() if host != hosts[0]]
    return [(host, parts.endpoints.control_port) for host in hosts]


def _model(node: Node) -> ModelStatus | None:
    if node.model_source is None:
        return None
    source = node.model_source.source
    return ModelStatus(
        name=node.model_source.name,
        digest=node.model_source.manifest.model_digest,
        family=source.family,
        dtype=str(node.model.dtype if node.model else source.dtype).removeprefix("torch."),
        moe_layers=len(source.layers),
        experts=sum(layer.n_experts for layer in source.layers),
        expert_bytes_total=node.model_source.manifest.expert_bytes_total,
        trunk_bytes=source.trunk_bytes,
        context_tokens=source.context_length,
    )


def _peers(node: Node, parts: Parts) -> list[PeerStatus]:
    pool = node.pool
    me = PeerStatus(
        node=node.settings.node,
        state="joining" if pool is None else "alive",
        is_self=True,
        address=parts.endpoints.address(),
        capacity_bytes=pool.capacity_bytes if pool is not None else 0,
        held_bytes=pool.used_bytes if pool is not None else 0,
        experts_held=len(pool.experts()) if pool is not None else 0,
        software=__version__,
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
    )


def _coverage(node: Node, parts: Parts) -> CoverageStatus | None:
    machine = parts.custody.machine
    if machine is None or node.pool is None or node.model is None:
        return None
    view = parts.gossip.view
    place = {name: i for i, name in enumerate([node.settings.node, *sorted(parts.membership.machine.members)])}
    by_layer: list[list[list[int]]] = []
    for expert in sorted(node.model.experts):
        holders = {place[name] for name in view.holders(expert) if name in place}
        if expert in node.pool:
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
        missing_bytes=machine.missing_bytes,
        holder_map_digest=view.holder_digest().hex(),
        holders_by_layer=by_layer,
    )


def _custody(parts: Parts) -> CustodyStatus | None:
    custody = parts.custody
    if custody.machine is None:
        return None
    return CustodyStatus(
        experts=len(custody.machine.custody),
        intakes=custody.machine.intakes,
        migrations=custody.machine.migrations,
        lost=[str(expert) for expert in sorted(custody.lost)[:LOST_SHOWN_MAX]],
        lost_total=len(custody.lost),
        given=custody.counts["migrations_given"],
        taken=custody.counts["migrations_taken"],
    )


def _transfers(node: Node) -> list[TransferStatus]:
    found = []
    if node.progress is not None and node.phase == "loading":
        what, done, total = node.progress
        found.append(TransferStatus(what=what, source="disk", done_bytes=done, total_bytes=total))
    if node.parts is not None:
        found += [
            TransferStatus(what=str(t.unit), source=t.peer, done_bytes=t.done_bytes, total_bytes=t.total_bytes)
            for t in node.parts.unit_client.transfers.values()
        ]
    return found
