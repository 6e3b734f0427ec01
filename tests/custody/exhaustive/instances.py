"""The worlds in which the rule is checked: a default set for every test run, and a larger one for ``--large``."""

from __future__ import annotations

from typing import NamedTuple

from meshmoe.custody.rule import CustodyRule
from tests.custody.exhaustive.model import Bounds
from tests.custody.exhaustive.mutants import OrderIgnored


class Instance(NamedTuple):
    """A rule that must be safe, and how far to look."""

    name: str
    bounds: Bounds
    rule: CustodyRule = CustodyRule()


DEFAULT = (
    Instance("one slot, no crash of its custodian", Bounds(slots=1, abstract=True)),
    Instance("two slots, crashes without number", Bounds(abstract=True)),
    Instance("two slots, any node may think that one is enough", Bounds(abstract=True, surplus=True)),
    Instance("real claims, disks, generations; one crash", Bounds()),
)

LARGE = (
    Instance("one slot, four nodes", Bounds(nodes=4, slots=1, abstract=True)),
    Instance("two slots, epochs to 3", Bounds(epochs=3, abstract=True)),
    Instance("two slots, four nodes, epoch 1", Bounds(nodes=4, epochs=1, abstract=True)),
    Instance("surplus, four nodes, epoch 1", Bounds(nodes=4, epochs=1, abstract=True, surplus=True)),
    Instance("real claims, two crashes, epoch 1, stale answers kept", Bounds(epochs=1, crashes=2, stale_answers=True)),
    Instance("real claims, two questions a life", Bounds(asks=2)),
    Instance("real claims, two crashes", Bounds(crashes=2)),
    Instance("the order of claims ignored", Bounds(abstract=True), OrderIgnored()),
)
