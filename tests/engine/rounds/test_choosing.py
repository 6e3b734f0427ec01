"""Compiled choice of holders is that of `meshmoe.placement.holder_choice`, by way of `meshmoe.node.routes`."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from meshmoe.core.ids import NodeId
from meshmoe.engine.rounds.choosing import choose, has_spare
from meshmoe.engine.rounds.post import make_post
from meshmoe.engine.rounds.tables import Cost, Office, Peer
from meshmoe.node.peer_times import PeerTimes
from meshmoe.node.routes import Routes

PEERS = [NodeId(name) for name in ("b", "a", "d", "c")]
EXPERTS = 6
ROW_BYTES = 64

# Few values, so that times are often equal and only names decide.
fixed_s = st.sampled_from([0.001, 0.0011, 0.002, 0.01])
byte_s = st.sampled_from([1e-9, 1e-6, 4e-6])


class FakeMesh:
    """Who holds what, and how far away, all at will."""

    version = 0

    def __init__(self, holders, costs, suspected):
        self._holders, self._costs, self._suspected = holders, costs, suspected

    def holders(self, expert):
        mine = [peer for peer in sorted(PEERS) if peer in self._holders[expert.index]]
        return [peer for peer in mine if peer not in self._suspected] or mine

    def call_time_s(self, peer, payload_bytes):
        fixed, byte = self._costs[peer]
        return fixed + byte * payload_bytes


@settings(max_examples=400, deadline=None)
@given(
    holders=st.lists(st.sets(st.sampled_from(PEERS)), min_size=EXPERTS, max_size=EXPERTS),
    costs=st.fixed_dictionaries({peer: st.tuples(fixed_s, byte_s) for peer in PEERS}),
    rows=st.dictionaries(st.integers(0, EXPERTS - 1), st.integers(1, 9), min_size=1),
    suspected=st.sets(st.sampled_from(PEERS)),
    distrusted=st.sets(st.sampled_from(PEERS)),
)
def test_the_choice_is_that_of_routes(holders, costs, rows, suspected, distrusted):
    times = PeerTimes()
    for peer in distrusted:
        times.missed(peer, 0.0)
    routes = Routes(FakeMesh(holders, costs, suspected), times)
    routes.look(0.0)
    expected = routes.choose(0, {expert: range(count) for expert, count in sorted(rows.items())}, ROW_BYTES)

    post = make_post(1, EXPERTS)
    post.numbers[Office.PEERS] = len(PEERS)
    for slot, peer in enumerate(PEERS):
        # As `Routes` has them, to the last bit.
        post.costs[slot, Cost.FIXED_S] = costs[peer][0]
        post.costs[slot, Cost.BYTE_S] = (costs[peer][0] + costs[peer][1] * (1 << 20) - costs[peer][0]) / (1 << 20)
        post.peers[slot, Peer.RANK] = sorted(PEERS).index(peer)
        post.numbers[Office.SUSPECTED] |= (peer in suspected) << slot
        post.numbers[Office.DISTRUSTED] |= (peer in distrusted) << slot
        for expert in range(EXPERTS):
            post.owners[0, expert] |= (peer in holders[expert]) << slot
    for at, (expert, count) in enumerate(sorted(rows.items())):
        post.wanted[at] = expert, 0, count, -7
    assert choose(post.whole[0], 0, len(rows), ROW_BYTES) == (expected is not None)
    if expected is None:
        return
    found: dict[NodeId, list[int]] = {}
    for expert, _, _, slot in post.wanted[: len(rows)].tolist():
        found.setdefault(PEERS[slot], []).append(expert)
    assert found == expected.experts
    assert all(has_spare(post.whole[0], 0, expert) for expert in rows) == expected.spare


def test_nobody_holds_it():
    post = make_post(1, EXPERTS)
    post.wanted[0] = 3, 0, 1, -1
    assert not choose(post.whole[0], 0, 1, ROW_BYTES)
    post.numbers[Office.PEERS], post.owners[0, 3] = 1, 1
    assert choose(post.whole[0], 0, 1, ROW_BYTES)
