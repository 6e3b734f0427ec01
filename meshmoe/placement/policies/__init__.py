"""Ways to place experts, behind one interface: ours, the published ones, the optimum and a bound."""

from meshmoe.placement.policies.base import Policy
from meshmoe.placement.policies.dancemoe import DanceMoE
from meshmoe.placement.policies.eplb import GlobalEplb, HierarchicalEplb
from meshmoe.placement.policies.even import Redundance, Uniform
from meshmoe.placement.policies.negotiated import Negotiated
from meshmoe.placement.policies.smartmoe import SmartMoE

__all__ = [
    "DanceMoE",
    "GlobalEplb",
    "HierarchicalEplb",
    "Negotiated",
    "Policy",
    "Redundance",
    "SmartMoE",
    "Uniform",
    "all_policies",
]


def all_policies() -> tuple[Policy, ...]:
    """Every policy that works at any size, ours last."""
    return (Uniform(), Redundance(), SmartMoE(), GlobalEplb(), HierarchicalEplb(), DanceMoE(), Negotiated())
