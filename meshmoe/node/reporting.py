"""Makes the status of a node out of what its parts know."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from meshmoe import __version__
from meshmoe.core.errors import CapacityError, MeshmoeError, OverloadedError
from meshmoe.core.ids import ExpertId
from meshmoe.core.units import format_size
from meshmoe.engine.pool import ExpertPool
from meshmoe.gossip.view import View
from meshmoe.node.addresses import lan_addresses
from meshmoe.node.measure import rss_bytes
from meshmoe.node.reporting_custody import custody_status, migrations_ended, migrations_under_way, transfers
from meshmoe.node.reporting_mesh import coverage_status, link_statuses, peer_statuses
from meshmoe.node.reporting_placement import agreement_status, placement_status
from meshmoe.node.status import ModelStatus, NodeStatus, SpotCheckStatus

if TYPE_CHECKING:
    from meshmoe.node.node import Node
    from meshmoe.node.parts import Parts


class NotReadyError(OverloadedError):
    """The node will serve soon, or no more."""

    http_status = 503
    kind = "server_error"


LackingKey = tuple[int, int]


def readiness_problem(node: Node) -> MeshmoeError | None:
    """What stands against serving a request now; None when nothing does."""
    if node.phase == "leaving":
        return NotReadyError(f"node {node.settings.node} is leaving the mesh: ask another node")
    if node.parts is None or node.serving.engine is None or node.pool is None or node.model is None:
        return NotReadyError(f"node {node.settings.node} is {node.phase}: try again in a moment")
    custody = node.parts.custody
    lacking = _lacking(node, node.parts.gossip.view, node.model.experts, node.pool)
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


def _lacking(node: Node, view: View, experts: Sequence[ExpertId], pool: ExpertPool) -> list[ExpertId]:
    """Experts without a holder.

    Looked for anew only when holders or residents have changed: every request asks twice, and for a model of 6,144
    experts it takes milliseconds of the event loop.
    """
    key = (view.holders_version, pool.used_bytes)
    if node.lacking is None or node.lacking[0] != key:
        held = view.holder_map()
        node.lacking = (key, [expert for expert in experts if expert not in held and expert not in pool])
    return node.lacking[1]


def node_status(node: Node) -> NodeStatus:
    """The whole status."""
    parts = node.parts
    problem = readiness_problem(node)
    served = parts.expert_server.rows_served if parts else 0
    client = parts.expert_client if parts else None
    return NodeStatus(
        node=node.settings.node,
        generation=node.generation,
        software=__version__,
        uptime_s=time.time() - node.generation / 1000,
        phase=node.phase,
        rss_bytes=rss_bytes(),
        model=_model(node),
        peers=peer_statuses(node, parts) if parts else [],
        coverage=coverage_status(node, parts) if parts else None,
        serving=node.serving.status(problem is None, str(problem or ""), served, client),
        transfers=transfers(node),
        experts_wanted=len(parts.custody.wanted) if parts else 0,
        custody=custody_status(parts) if parts else None,
        placement=placement_status(parts) if parts else None,
        agreement=agreement_status(parts) if parts else None,
        join_command=join_command(node, parts) if parts else "",
        faults=dict(parts.messenger.faults) if parts else {},
        faults_by_peer=parts.messenger.offences.by_peer() if parts else {},
        spot_checks=_spot_checks(parts) if parts else None,
        secured=not node.settings.insecure,
        members=len(node.security.roll.records) if node.security is not None and node.security.roll is not None else 0,
        links=link_statuses(parts) if parts else [],
        migrations=migrations_under_way(parts) if parts else [],
        migrations_ended=migrations_ended(parts) if parts else [],
        loop_late_p99_ms=round(1e3 * parts.membership.loop_late_p99_s(), 3) if parts else 0.0,
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


def _spot_checks(parts: Parts) -> SpotCheckStatus | None:
    checks = parts.expert_client.spot_checks
    if checks is None:
        return None
    return SpotCheckStatus(made=checks.made, differing_bits=checks.differing_bits, disagreements=checks.disagreements)


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
