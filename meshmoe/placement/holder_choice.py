"""Which holder serves which expert of a layer call: chosen as a set, since the slowest branch is what counts.

Two wishes pull apart: few messages (each costs both ends some 100 us), and no slow link. A holder's *time* is its round
trip plus the bytes it is given over its rate. The bound that nobody can beat is the slowest of the experts' best
holders; every holder within that bound (and a little) is as good as any, and among those the ones that serve most
experts are taken first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from meshmoe.core.ids import NodeId

SLACK = 1.15
"""A holder this much slower than the unavoidable slowest branch is still taken for saving a message."""


def choose_holders(
    rows: Mapping[int, int],
    holders: Mapping[int, Sequence[NodeId]],
    time_s: Callable[[NodeId, int], float],
) -> dict[NodeId, list[int]]:
    """Assign each expert to one of its holders.

    Args:
        rows: For each needed expert the number of its rows.
        holders: For each needed expert its holders, at least one.
        time_s: Expected seconds for a peer to answer a call with so many rows.

    Returns:
        For each chosen peer its experts, ascending.
    """
    if len(rows) == 1:  # the common case of decode: no set to speak of
        ((expert, count),) = rows.items()
        return {min(holders[expert], key=lambda peer: (time_s(peer, count), peer)): [expert]}
    bound_s = SLACK * max(min(time_s(peer, count) for peer in holders[expert]) for expert, count in rows.items())
    waiting = dict(sorted(rows.items()))
    given: dict[NodeId, list[int]] = {}
    load = dict.fromkeys({peer for expert in rows for peer in holders[expert]}, 0)

    def give(expert: int, peer: NodeId) -> None:
        given.setdefault(peer, []).append(expert)
        load[peer] += waiting.pop(expert)

    while waiting:
        within: dict[NodeId, list[int]] = {}
        for expert, count in waiting.items():
            for peer in holders[expert]:
                if time_s(peer, load[peer] + count) <= bound_s:
                    within.setdefault(peer, []).append(expert)
        if within:
            peer = min(within, key=lambda p: (-len(within[p]), time_s(p, load[p]), p))
            for expert in within[peer]:
                if time_s(peer, load[peer] + waiting[expert]) <= bound_s:
                    give(expert, peer)
        else:  # every fast holder has its fill: the next expert goes where it ends first
            expert, count = next(iter(waiting.items()))
            give(expert, _soonest(holders[expert], count, load, time_s))
    return {peer: sorted(experts) for peer, experts in given.items()}


def _soonest(
    peers: Sequence[NodeId], rows: int, load: Mapping[NodeId, int], time_s: Callable[[NodeId, int], float]
) -> NodeId:
    return min(peers, key=lambda peer: (time_s(peer, load[peer] + rows), peer))
