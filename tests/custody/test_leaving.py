"""A leave among views that differ: what the one who goes may promise, and what the one who takes over must wait for."""

from meshmoe.core.ids import ExpertId
from meshmoe.custody import DEFAULT, Leave, LeaveFinished, MigrationEnded, Planned
from meshmoe.custody.messages import (
    ClaimAnswers,
    ClaimQuestions,
    MigrationAcked,
    MigrationClaimed,
    MigrationOffer,
    MigrationReserved,
    Question,
)
from tests.custody.support import SIZE, Alone, view

E0 = ExpertId(0, 0)


def answers(node):
    return [(one.slot, one.epoch) for _, message in node.sent(ClaimAnswers) for one in message.answers]


def test_who_leaves_answers_that_its_claims_stand_no_more():
    """Seed 305228 of the simulator: somebody was relieved by a leaver, who then left with the expert in its hands."""
    node = Alone(1, capacity=1)
    node.wait(5)
    node.hear("a", ClaimQuestions(7, [Question(0, 0, 0, 1)]))
    node.feed(Leave())
    node.hear("a", ClaimQuestions(7, [Question(0, 0, 0, 2)]))
    assert answers(node) == [(0, 1), (0, None)]
    assert node.machine.custody == {E0: 0}, "it keeps its promise to those who need not know that it made one"


def test_a_claim_that_a_donor_waits_for_is_not_given_up_for_another_slot():
    """Seeds 310071 and 310107: the leaver wanted two slots, the others one, and it was never rid of the second."""
    node = Alone(2, capacity=1, on_disk=(0,))
    others = view("b", capacity=2, claims={0: 0, 1: 0}), view("a", capacity=1, claims={0: 1}, state="leaving")
    node.feed(Planned({E0: (others[0].node,)}))
    node.see(*others)
    assert node.machine.slots_wanted(E0) == 1
    node.hear("a", MigrationOffer(1, 0, 0, 1, 1, SIZE))
    assert node.machine.custody == {E0: 1}
    assert node.sent(MigrationClaimed), "the donor is told"
    assert not node.sent(ClaimQuestions), "nobody is asked before the donor is rid of its claim"
    node.hear("a", MigrationAcked(1))
    node.wait(1)
    assert [peer for peer, _ in node.sent(ClaimQuestions)] == ["b"]


def test_two_who_leave_together_do_not_wait_for_each_other():
    node = Alone(1, capacity=1)
    node.wait(5)
    node.see(view("a", capacity=1, free=1))
    begun_s = node.now
    node.feed(Leave())
    assert node.sent(MigrationOffer)
    node.wait(1)
    node.see(view("a", capacity=1, free=1, state="leaving"))
    assert [ended.outcome for ended in node.of(MigrationEnded)] == ["kept"], "what it has not taken, it will not take"
    while not node.of(LeaveFinished):
        node.wait(0.25)
    assert node.now - begun_s == DEFAULT.ask_timeout_s, "no longer, nor less than an answer is believed"
    assert node.of(LeaveFinished) == [LeaveFinished(((E0, "every other node has gone or is leaving too"),))]


def test_who_leaves_notices_that_its_only_peer_has_died_while_it_took_something():
    node = Alone(1, capacity=1)
    node.wait(5)
    node.see(view("a", capacity=1, free=1))
    node.feed(Leave())
    (peer, offer), *_ = node.sent(MigrationOffer)
    node.hear(peer, MigrationReserved(offer.id, 0))
    node.wait(10)
    assert not node.of(LeaveFinished)
    node.see()
    node.wait(DEFAULT.leave_retry_s)
    assert [expert for expert, _ in node.of(LeaveFinished)[0].kept] == [E0]


def test_who_leaves_waits_for_a_peer_that_is_only_starting():
    node = Alone(1, capacity=1)
    node.wait(5)
    node.see(view("a", capacity=1, free=1, state="starting"))
    node.feed(Leave())
    node.wait(DEFAULT.ask_timeout_s + 1)
    assert not node.of(LeaveFinished)
    node.see(view("a", capacity=1, free=1))
    assert node.sent(MigrationOffer)
