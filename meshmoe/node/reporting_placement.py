"""Status of placement: what weights follow, why experts move, and whether nodes see the same holders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshmoe.node.status import AgreementStatus, PlacementStatus

if TYPE_CHECKING:
    from meshmoe.node.parts import Parts


def placement_status(parts: Parts) -> PlacementStatus | None:
    """What placement does; None until the model is known."""
    placement = parts.placement
    if parts.custody.machine is None:
        return None
    return PlacementStatus(
        rule="exchange" if parts.custody.settled else "guardian",
        plan_version=placement.plan_version,
        quiet=placement.quiet,
        settled=parts.custody.settled,
        decision_ms_max=round(1e3 * placement.thought_s, 3),
        exchanges=list(placement.exchanges),
    )


def agreement_status(parts: Parts) -> AgreementStatus | None:
    """Who sees the same holders as this node; None until the model is known."""
    if parts.custody.machine is None:
        return None
    view = parts.gossip.view
    differ = [str(node) for node in view.disagreeing()]
    return AgreementStatus(digest=view.holder_digest().hex(), equal=not differ, differ=differ)
