"""The read side: the index follows every change, and equals one built from scratch."""

from hypothesis import given
from hypothesis import strategies as st

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.gossip import Agreement, Claim, Claims, Demand, Holdings, Link, Links, Load, NodeInfo, View, holder_digest
from meshmoe.gossip import key_of as key

A, B, C = (NodeId(name) for name in "abc")
HERE = Endpoints("10.0.0.1", 7000)


def shown(*nodes):
    view = View()
    for node in nodes:
        view.show(node, 1, suspect=False, values={})
    return view


def put(view, node, value):
    view.set(node, key(value), value)


def test_what_a_node_tells_is_seen():
    view = shown(A)
    info, load = NodeInfo("serving", HERE, "0.1.0"), Load(5, 7)
    for value in (info, load, Links([Link("b", 800)]), Demand.of(2, [0.0, 3.0]), Agreement(bytes(16))):
        put(view, A, value)
    node = view.nodes[A]
    assert (node.info, node.load, node.agreement) == (info, load, bytes(16))
    assert node.links[B].rtt_us == 800
    assert view.free_bytes(A) == 5
    assert view.free_bytes(B) == 0
    assert view.demand_per_s(2).keys() == {A}
    assert view.demand_per_s(3) == {}
    assert node.demand_per_s(3) == []


def test_holders_follow_holdings():
    view = shown(B, A)
    put(view, A, Holdings.of(0, [1, 2]))
    put(view, B, Holdings.of(0, [2, 3]))
    assert [view.holders(ExpertId(0, i)) for i in range(4)] == [(), (A,), (A, B), (B,)]
    put(view, A, Holdings.of(0, [1, 3]))
    assert [view.holders(ExpertId(0, i)) for i in range(4)] == [(), (A,), (B,), (A, B)]
    view.set(B, "holdings/0", None)
    assert view.holders(ExpertId(0, 3)) == (A,)
    view.hide(A)
    assert view.holder_map() == {}


def test_the_prevailing_claim_comes_first():
    view = shown(A, B, C)
    put(view, A, Claims.of(1, {4: 2}))
    put(view, B, Claims.of(1, {4: 7, 5: 1}))
    put(view, C, Claims.of(1, {4: 7}))
    assert view.claims(ExpertId(1, 4)) == (Claim(7, C), Claim(7, B), Claim(2, A))
    put(view, C, Claims.of(1, {}))
    view.hide(B)
    assert view.claims(ExpertId(1, 4)) == (Claim(2, A),)
    assert view.claims(ExpertId(1, 5)) == ()


def test_a_later_life_starts_empty():
    view = shown(A)
    put(view, A, Holdings.of(0, [1]))
    view.show(A, 2, suspect=False, values={"load": Load(1, 1)})
    assert view.holders(ExpertId(0, 1)) == ()
    assert view.nodes[A].generation == 2
    assert view.nodes[A].load == Load(1, 1)


def test_suspicion_shows_and_keeps_holdings():
    view = shown(A)
    put(view, A, Holdings.of(0, [1]))
    view.show(A, 1, suspect=True, values={})
    assert view.nodes[A].suspect
    assert view.holders(ExpertId(0, 1)) == (A,)


def test_versions_tell_of_changes():
    view = shown(A)
    version, holders = view.version, view.holders_version
    put(view, A, Load(1, 2))
    assert view.version > version
    assert view.holders_version == holders
    put(view, A, Holdings.of(0, [1]))
    assert view.holders_version > holders
    version = view.version
    view.show(A, 1, suspect=False, values={})
    view.hide(B)
    assert view.version == version


def test_a_snapshot_stays():
    view = shown(A)
    put(view, A, Load(1, 2))
    before = dict(view.nodes)
    put(view, A, Load(3, 4))
    view.hide(A)
    assert before[A].load == Load(1, 2)


def test_agreement():
    view = shown(A, B)
    put(view, A, Holdings.of(0, [1]))
    assert view.disagreeing() == [A, B]
    put(view, A, Agreement(view.holder_digest()))
    put(view, B, Agreement(view.holder_digest()))
    assert view.disagreeing() == []
    put(view, B, Holdings.of(0, [1]))
    assert view.disagreeing() == [A, B]


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("hold"), st.sampled_from([A, B, C]), st.integers(0, 2), st.sets(st.integers(0, 20), max_size=6)
        ),
        st.tuples(st.just("claim"), st.sampled_from([A, B, C]), st.integers(0, 2), st.sets(st.integers(0, 20))),
        st.tuples(st.just("hide"), st.sampled_from([A, B, C]), st.just(0), st.just(set())),
    ),
    max_size=30,
)


@given(steps)
def test_the_index_is_what_one_would_build_from_scratch(taken):
    view = shown()
    holds, claims = {}, {}
    for what, node, layer, indices in taken:
        if what == "hide":
            view.hide(node)
            holds = {at: held for at, held in holds.items() if at[0] != node}
            claims = {at: held for at, held in claims.items() if at[0] != node}
            continue
        if node not in view.nodes:
            view.show(node, 1, suspect=False, values={})
        if what == "hold":
            put(view, node, Holdings.of(layer, indices))
            holds[node, layer] = indices
        else:
            put(view, node, Claims.of(layer, dict.fromkeys(indices, 3)))
            claims[node, layer] = indices
    expected = {}
    for (node, layer), indices in sorted(holds.items()):
        for index in indices:
            expected.setdefault(ExpertId(layer, index), []).append(node)
    assert view.holder_map() == {expert: tuple(sorted(nodes)) for expert, nodes in expected.items()}
    for layer in range(3):
        for index in range(21):
            claimants = sorted(
                (node for (node, at), held in claims.items() if at == layer and index in held), reverse=True
            )
            assert view.claims(ExpertId(layer, index)) == tuple(Claim(3, node) for node in claimants)


@given(st.permutations([(A, 0, [1]), (A, 1, [2, 9]), (B, 0, [1, 30]), (C, 2, [])]))
def test_the_digest_depends_on_the_holdings_alone(order):
    view = shown(*(node for node, _, _ in order))
    for node, layer, indices in order:
        put(view, node, Holdings.of(layer, [7]))
        put(view, node, Load(len(indices), 0))
        put(view, node, Holdings.of(layer, indices))
    other = shown(C, B, A)
    for node, layer, indices in ((A, 0, [1]), (A, 1, [2, 9]), (B, 0, [1, 30])):
        put(other, node, Holdings.of(layer, indices))
    assert view.holder_digest() == other.holder_digest() == holder_digest(view.nodes)


def test_different_holdings_have_different_digests():
    digests = set()
    for held in ([], [0], [1], [0, 1], [8]):
        for node in (A, B):
            for layer in (0, 1):
                view = shown(A, B)
                put(view, node, Holdings.of(layer, held))
                digests.add(view.holder_digest())
    assert len(digests) == 1 + 4 * 4
