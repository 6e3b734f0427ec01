"""What a node believes of the mesh: who holds and owns what, what each way costs, and what third nodes would lose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from meshmoe.placement.compiled import compiled
from meshmoe.placement.cost import Branches
from meshmoe.placement.joint import Caller
from meshmoe.placement.table import Mask, Table
from meshmoe.placement.trace import Floats, Ints
from meshmoe.placement.world import Holders, ModelShape


@dataclass(frozen=True)
class Outlook:
    """What a node believes of the mesh: from its own measurements and from gossip.

    Attributes:
        shape: The model.
        time_s: ``[nodes, nodes]``, seconds until one row of an expert is back: ``[caller, holder]``.
        byte_s: ``[nodes, nodes]``, seconds a byte.
        row_s: ``[nodes]``, compute of each further row.
        holders: Who holds what.
        owner: ``[layers, experts]``, position of the owner; -1 where there is no such expert.
        demand: ``[nodes, layers, experts]``, calls a second.
    """

    shape: ModelShape
    time_s: Floats
    byte_s: Floats
    row_s: Floats
    holders: Holders
    owner: Ints
    demand: Floats

    def owned(self, node: int) -> Mask:
        """What a node owns: ``[layers, experts]``."""
        owned: Mask = self.owner == node
        return owned

    def branches(self, node: int, partner: int | None = None) -> Branches:
        """The node's way to every expert elsewhere.

        Args:
            node: Who calls.
            partner: Counted as a holder of everything that the node owns: where it would find what it gives away.
        """
        far = self.time_s[node].argmax()
        given = self.owner == node if partner is not None else np.zeros(self.owner.shape, bool)
        nearest = np.argsort(self.time_s[node], kind="stable")
        # Without a known holder it is being passed on, or custody's to repair: no reason to rush. It counts as far.
        best = _nearest(self.holders, nearest[nearest != node], given, -1 if partner is None else partner, far)
        wire_s = 2 * self.shape.row_bytes * self.byte_s[node]
        return Branches((self.time_s[node] - wire_s)[best], self.byte_s[node][best], self.row_s[best])

    def caller(self, node: int, ends: tuple[int, int], table: Table) -> Caller:
        """A node as the search for a division sees it.

        Args:
            node: One of the two ends, or a third one.
            ends: The two.
            table: The node's demand.
        """
        time_s, flat = self.time_s[node], self.holders.reshape(len(self.holders), -1)
        best = _nearest_beside(flat, np.argsort(time_s, kind="stable"), time_s, node, ends, table.place)
        wire_s = 2 * self.shape.row_bytes * self.byte_s[node]
        ways = Branches((time_s - wire_s)[best], self.byte_s[node][best], self.row_s[best])
        return Caller(table, ways, None if node in ends else flat[node, table.place])

    def regret(self, node: int, asked: Mask | None = None) -> Floats:
        """What all others lose, at most, if a node drops an expert: ``[layers, experts]`` seconds a second.

        0 where it does not hold one, and where it is an expert's only holder.

        Args:
            node: Who drops it.
            asked: ``[nodes]``, whose loss counts; everybody's if None.
        """
        return self._others_lose(node, -1, asked)

    def passing_regret(self, source: int, target: int, asked: Mask | None = None) -> Floats:
        """What nodes other than these two lose, at most, if an expert is at ``target`` instead of ``source``.

        ``[layers, experts]`` seconds a second, 0 where ``source`` does not hold one.
        """
        return self._others_lose(source, target, asked)

    def _others_lose(self, source: int, target: int, asked: Mask | None) -> Floats:
        count = len(self.holders)
        asked = np.ones(count, bool) if asked is None else asked
        holders, demand = self.holders.reshape(count, -1), self.demand.reshape(count, -1)
        total: Floats = np.zeros(self.owner.size)
        places = np.flatnonzero(holders[source])
        total[places] = _others_lose(self.time_s, holders, demand, places, source, target, asked)
        return total.reshape(self.owner.shape)


@compiled
def _nearest(holders: Mask, order: Ints, given: Mask, partner: int, nobody: int) -> Ints:
    """The first of ``order`` that holds each expert; ``partner`` counts as a holder of what is ``given``."""
    layers, experts = given.shape
    best = np.empty((layers, experts), np.int64)
    for layer in range(layers):
        for e in range(experts):
            found = nobody
            for node in order:
                if holders[node, layer, e] or (node == partner and given[layer, e]):
                    found = node
                    break
            best[layer, e] = found
    return best


@compiled
def _nearest_beside(holders: Mask, order: Ints, time_s: Floats, node: int, ends: tuple[int, int], places: Ints) -> Ints:
    """The first of ``order`` that holds what is in each place, the node itself left out: ``[STATES, places]``."""
    best = np.empty((4, len(places)), np.int64)
    for number in range(len(places)):
        found = -1
        for other in order:
            if holders[other, places[number]] and other != node and other != ends[0] and other != ends[1]:
                found = other
                break
        for state in range(4):
            nearest = found
            for bit in range(2):
                end = ends[bit]
                if state >> bit & 1 and end != node and (nearest < 0 or time_s[end] < time_s[nearest]):
                    nearest = end
            best[state, number] = order[-1] if nearest < 0 else nearest
    return best


@compiled
def _others_lose(
    time_s: Floats, holders: Mask, demand: Floats, places: Ints, source: int, target: int, asked: Mask
) -> Floats:
    """For each place, what ``asked`` but the two lose if it is at ``target`` instead of ``source``, or nowhere (-1)."""
    losses = np.zeros(len(places))
    near = np.empty(len(holders), np.int64)
    for number in range(len(places)):
        place, count = places[number], 0
        for node in range(len(holders)):
            if holders[node, place]:
                near[count] = node
                count += 1
        for caller in range(len(holders)):
            if caller in (source, target) or holders[caller, place] or not asked[caller]:
                continue
            now, then = np.inf, np.inf
            for i in range(count):
                now = min(now, time_s[caller, near[i]])
                if near[i] != source:
                    then = min(then, time_s[caller, near[i]])
            if target >= 0:
                then = min(then, time_s[caller, target])
            if np.isfinite(then) and then > now:
                losses[number] += demand[caller, place] * (then - now)
    return losses
