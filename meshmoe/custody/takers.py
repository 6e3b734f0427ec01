"""To whom an expert in custody can be given: the order in which a donor asks."""

from __future__ import annotations

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody.desk import Desk
from meshmoe.custody.donor import Donors
from meshmoe.custody.slots import succession


def takers(desk: Desk, donors: Donors, expert: ExpertId) -> list[NodeId]:
    """Serving nodes that may take over our claim on ``expert``, those first whom it costs least.

    That is: who has a claim in our slot already, who has the weights resident, the guardians, others with room, the
    rest (they may have replicas to drop). A custodian in another slot cannot take a second one.
    """
    slot = desk.book[expert].slot
    serving = frozenset(desk.survey.capacities())
    claimants = {claim.node: where for where, claim in desk.survey.claims(expert)}
    holders = desk.survey.holders(expert) & serving
    same_slot = [node for node, where in claimants.items() if where == slot and node in serving]
    guardians = [node for node in desk.plan.guardians.get(expert, ()) if node in serving]
    roomy = sorted(succession(expert, serving), key=lambda node: not has_room(desk, donors, node, expert))
    order = dict.fromkeys([*sorted(same_slot), *succession(expert, holders), *guardians, *roomy])
    return [node for node in order if claimants.get(node, slot) == slot]


def has_room(desk: Desk, donors: Donors, node: NodeId, expert: ExpertId) -> bool:
    """Whether a node in view has room for an expert, as it last told, less what we have offered it since."""
    load = desk.survey.nodes[node].load
    return load is None or load.free_bytes - donors.promised_bytes(node) >= desk.expert_bytes[expert]
