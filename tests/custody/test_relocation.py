"""Custody follows the plans that nodes have agreed on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody import Leave, Planned, planned_slots
from meshmoe.custody.messages import (
    ClaimAnswers,
    ClaimQuestions,
    MigrationClaimed,
    MigrationOffer,
    MigrationRefused,
    Standing,
)
from meshmoe.custody.relocation import REST_S
from tests.custody.support import ME, SIZE, Alone, experts, view

E0, E1, E2, E3 = (ExpertId(0, index) for index in range(4))
A, B, C = map(NodeId, "abc")


def custodian(*others):
    """Custodian of experts 0 and 1 in slot 0; "a" is of 2 and 3; the mesh is too small for second slots."""
    node = Alone(4, capacity=3)
    node.see(view("a", capacity=3, claims={2: 0, 3: 0}), *others)
    node.wait(5)
    assert node.machine.custody == {E0: 0, E1: 0}
    return node


def planned(**holders):
    return Planned({ExpertId(0, int(name[1:])): tuple(map(NodeId, names)) for name, names in holders.items()})


def test_a_claim_goes_to_the_planned_holder_and_its_weights_go_too():
    node = custodian()
    node.see(view("a", capacity=3, claims={2: 0, 3: 0}, free=1))
    node.feed(planned(e0=["a"], e1=["me"], e2=["me"], e3=["a"]))
    node.wait(1)
    ((peer, offer),) = node.sent(MigrationOffer)[:1]
    assert (peer, offer.index) == ("a", 0)
    node.hear("a", MigrationClaimed(offer.id, 0, 0, 0, offer.epoch + 1))
    number = node.sent(ClaimQuestions)[-1][1].questions[0].number
    node.hear("a", ClaimAnswers(9, [Standing(0, 0, 0, number, offer.epoch + 1)]))
    node.wait(1)
    assert node.machine.custody == {E1: 0} and node.machine.resident == [E1]


def test_of_several_guardians_one_that_holds_it_already_gets_it():
    node = custodian()
    node.see(view("a", capacity=9, free=9), view("b", capacity=9, claims={0: 1}), view("c", capacity=9, claims={0: 0}))
    node.feed(planned(e0=["a", "c"]))
    node.wait(1)
    assert node.sent(MigrationOffer)[0][0] == "c"


def test_a_custodian_in_the_other_slot_gets_no_second_one():
    node = custodian()
    node.see(view("a", capacity=9, free=9, claims={0: 1}))
    node.feed(planned(e0=["a"], e1=["me"]))
    node.wait(10)
    assert not any(offer.index == 0 for _, offer in node.sent(MigrationOffer))


def test_copies_make_room_for_claims_or_full_nodes_would_wait_for_each_other():
    node = custodian()
    node.feed(planned(e0=["a"], e1=["me", "a"], e2=["me"], e3=["a"]))
    node.see(view("a", capacity=3, claims={2: 0, 3: 0}, copies={1}))
    node.wait(REST_S)
    assert [(peer, offer.index) for peer, offer in node.sent(MigrationOffer)[:1]] == [("a", 0)]


def test_who_has_no_room_is_not_bothered_and_a_refusal_rests():
    node = custodian()
    node.feed(planned(e0=["a"], e1=["me"], e2=["me"], e3=["a"]))
    node.wait(5)
    assert not node.sent(MigrationOffer)
    node.see(view("a", capacity=3, claims={2: 0, 3: 0}, free=1))
    node.wait(REST_S - 1)
    assert len({offer.id for _, offer in node.sent(MigrationOffer)}) == 1


def test_what_its_planned_holder_has_loaded_by_itself_goes_at_once_whatever_rests():
    node = custodian()
    node.see(view("a", capacity=3, claims={2: 0, 3: 0}, free=1))
    node.feed(planned(e0=["a"], e1=["me"], e2=["me"], e3=["a"]))
    node.wait(0.5)
    ((_, offer),) = node.sent(MigrationOffer)
    node.hear("a", MigrationRefused(offer.id, "room"))
    node.see(view("a", capacity=3, claims={2: 0, 3: 0}, copies={0}))
    assert [(peer, again.index) for peer, again in node.sent(MigrationOffer)[1:]] == [("a", 0)]


def test_without_plans_and_while_leaving_nothing_is_relocated():
    node = custodian()
    node.see(view("a", capacity=3, claims={2: 0, 3: 0}, free=1))
    node.feed(planned(e0=["a"], e2=["me"]))
    node.feed(Planned({}))
    assert not node.sent(MigrationOffer) or node.sent(MigrationOffer)[0][1].index == 0
    sent = len(node.sent(MigrationOffer))
    node.wait(1)
    assert len(node.sent(MigrationOffer)) == sent
    node.feed(Leave())
    node.wait(1)
    assert {offer.index for _, offer in node.sent(MigrationOffer)} == {0, 1}, "a farewell gives all"


def test_planned_holders_are_guardians_and_what_room_is_left_gets_second_ones():
    sizes = experts(3)
    plan = planned_slots(sizes, {A: 3 * SIZE, B: 3 * SIZE}, 2, {E0: (B,), E1: (B, A), E2: (A,)})
    assert plan.guardians[E0][0] == B and plan.guardians[E1] == (B, A) and plan.guardians[E2][0] == A
    assert all(len(named) == 2 for named in plan.guardians.values()), "both can hold everything"
    tight = planned_slots(sizes, {A: 2 * SIZE, B: 2 * SIZE}, 2, {E0: (B,), E1: (A,)})
    assert tight.guardians[E0] == (B,) and tight.guardians[E1] == (A,), "a place stays free"
    assert len(tight.guardians[E2]) == 1, "but not where an expert has no place else"


def test_planned_copies_beyond_the_slots_take_room_before_second_guardians_but_not_before_first_ones():
    """Second guardians of others kept every third copy out: plans were never carried out to the end."""
    capacities = dict.fromkeys((A, B, C), 3 * SIZE)  # of which one place stays free
    plan = planned_slots(experts(4), capacities, 2, {E0: (A, B, C), E1: (A,), E2: (B,), E3: (C,)})
    assert dict(plan.guardians) == {E0: (A, B), E1: (A,), E2: (B,), E3: (C,)}
    plan = planned_slots(experts(4), capacities, 2, {E0: (A, B, C), E1: (A, C), E2: (B,)})
    assert plan.guardians[E3] == (C,), "nobody else has room for it"


def test_where_every_expert_can_have_all_slots_they_go_before_further_copies():
    capacities = {A: 4 * SIZE, B: 3 * SIZE, C: 3 * SIZE}  # of B's and C's one place stays free
    plan = planned_slots(experts(4), capacities, 2, {E0: (A, B, C), E1: (A, C), E2: (A,), E3: (A,)})
    assert all(len(named) == 2 for named in plan.guardians.values())
    assert {plan.guardians[E2][1], plan.guardians[E3][1]} == {B, C}


def test_planned_holders_that_are_gone_are_replaced():
    plan = planned_slots(experts(2), {A: 3 * SIZE, B: 3 * SIZE}, 1, {E0: (C,), E1: (C, B)})
    assert plan.guardians[E1] == (B,) and plan.guardians[E0][0] in (A, B)


@pytest.mark.parametrize("slots", [1, 2])
@given(data=st.data())
def test_guardians_are_distinct_and_fit(slots, data):
    count = data.draw(st.integers(1, 12))
    nodes = [A, B, C, ME]
    capacities = {node: data.draw(st.integers(0, 14)) * SIZE for node in nodes}
    room = dict(capacities)
    agreed = {}
    for expert in experts(count):  # plans fit their nodes, a place kept free
        holders = [node for node in nodes if room[node] >= 2 * SIZE and data.draw(st.booleans())]
        for node in holders:
            room[node] -= SIZE
        agreed[expert] = tuple(holders)
    plan = planned_slots(experts(count), capacities, slots, agreed)
    for expert, named in plan.guardians.items():
        assert len(set(named)) == len(named) <= slots
        assert named[: len(agreed[expert])] == agreed[expert][:slots]
    for node in nodes:
        held = sum(node in named for named in plan.guardians.values())
        assert held * SIZE <= capacities[node]
        second = sum(node in named[1:] and node not in agreed[expert] for expert, named in plan.guardians.items())
        safe = all(len(plan.guardians.get(expert, ())) == slots for expert in experts(count))
        assert (
            safe
            or not second
            or (second + sum(node in holders for holders in agreed.values())) * SIZE <= capacities[node]
        )
    if sum(capacities.values()) // SIZE >= count and max(capacities.values()) >= count * SIZE + 3 * SIZE:
        assert set(plan.guardians) == set(experts(count))


def test_what_does_not_fit_in_whole_places_is_missing():
    """Each of two nodes has room for one expert and a half: three experts' bytes, but two experts."""
    sizes = dict.fromkeys((E0, E1, E2), SIZE)
    plan = planned_slots(sizes, {A: SIZE * 3 // 2, B: SIZE * 3 // 2}, 2, {E0: (A,)})
    assert len(plan.guardians) == 2
    assert plan.missing_bytes == SIZE
    roomy = planned_slots(sizes, {A: 2 * SIZE, B: 2 * SIZE}, 2, {E0: (A,)})
    assert len(roomy.guardians) == 3
    assert roomy.missing_bytes == 0
