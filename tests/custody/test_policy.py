"""What the policy around the custody rule brings about, case by case; the simulator tries everything else."""

from meshmoe.core.ids import ExpertId
from meshmoe.custody import DEFAULT, Found, Leave, LeaveFinished, Lost, OnDisk, PieceArrived, RequestPiece, Want
from meshmoe.custody.messages import (
    ClaimAnswers,
    ClaimQuestions,
    MigrationAcked,
    MigrationClaimed,
    MigrationOffer,
    MigrationRefused,
    MigrationReserved,
    Standing,
)
from tests.custody.support import SIZE, Alone, view

E0, E1, E2 = (ExpertId(0, index) for index in range(3))


def test_a_vacant_slot_is_filled_from_the_own_disk():
    node = Alone(2, capacity=3)
    node.wait(5)
    assert node.machine.custody == {E0: 0, E1: 0}
    assert set(node.told()) == {0, 1}


def test_slots_that_others_fill_are_left_alone():
    node = Alone(2, capacity=10)
    node.see(view("a", claims={0: 0, 1: 0}), view("b", claims={0: 1, 1: 1}))
    node.wait(60)
    assert node.machine.custody == {}
    assert node.machine.resident == []


def test_a_greater_claim_is_asked_about_and_only_a_yes_releases():
    node = Alone(1, capacity=1)
    node.wait(5)
    node.see(view("z", capacity=1, claims={0: 0}))  # the same epoch, and a name that is greater
    (peer, questions), *_ = node.sent(ClaimQuestions)
    assert (peer, questions.questions[0].slot) == ("z", 0)
    number = questions.questions[0].number
    node.hear("z", ClaimAnswers(9, [Standing(0, 0, 0, number, None)]))
    assert node.machine.custody == {E0: 0}
    node.wait(3)
    number = node.sent(ClaimQuestions)[-1][1].questions[0].number
    node.hear("z", ClaimAnswers(9, [Standing(0, 0, 0, number, 1)]))
    assert node.machine.custody == {}
    node.wait(20)
    assert node.machine.custody == {E0: 1}, "two slots are wanted, and the other one is vacant now"


def test_a_late_answer_releases_nothing():
    node = Alone(1, capacity=1)
    node.wait(5)
    node.see(view("z", capacity=1, claims={0: 0}))
    number = node.sent(ClaimQuestions)[-1][1].questions[0].number
    node.now += DEFAULT.ask_timeout_s
    node.hear("z", ClaimAnswers(9, [Standing(0, 0, 0, number, 1)]))
    assert node.machine.custody == {E0: 0}


def test_who_leaves_takes_nothing_that_it_was_offered_before():
    node = Alone(1, capacity=5, on_disk=())
    node.see(view("a", claims={0: 0}), view("b", claims={0: 1}))
    node.hear("a", MigrationOffer(1, 0, 0, 0, 1, SIZE))
    assert [message.id for _, message in node.sent(MigrationReserved)] == [1]
    node.feed(Leave())
    assert [(message.id, message.reason) for _, message in node.sent(MigrationRefused)] == [(1, "leaving")]
    node.stored.add(E0)
    node.wait(60)
    assert node.machine.custody == {}
    assert not node.sent(MigrationClaimed)
    assert node.of(LeaveFinished) == [LeaveFinished(())]
    assert node.machine.migrations == node.machine.intakes == 0


def test_who_leaves_hands_over_and_says_what_nobody_takes():
    node = Alone(1, capacity=1)
    node.wait(5)
    node.see(view("a", capacity=1, free=0))
    node.feed(Leave())
    for _ in range(40):
        node.wait(1)
        for peer, offer in node.sent(MigrationOffer):
            node.hear(peer, MigrationRefused(offer.id, "room"))
    assert [expert for expert, _ in node.of(LeaveFinished)[0].kept] == [E0]
    assert node.machine.custody == {E0: 0}, "it keeps its promise until it ends"


def test_a_full_node_gives_an_expert_away_to_fill_a_slot():
    node = Alone(3, capacity=2, on_disk=(0, 1))
    node.wait(5)
    assert node.machine.custody == {E0: 0, E1: 0}
    node.stored.add(E2)
    node.feed(OnDisk(frozenset(node.stored)))
    # Two slots are wanted, and the second one of expert 2 is vacant. "wide" does not come to fill it.
    node.see(view("far", claims={0: 1, 1: 1, 2: 0}), view("wide", capacity=3, free=3))
    for _ in range(15):
        node.wait(1)
        if node.sent(MigrationOffer):
            break
    assert node.sent(MigrationOffer), "nothing is given, and nothing would ever move"
    peer, offer = node.sent(MigrationOffer)[0]
    assert (peer, offer.index) == ("wide", 0)
    node.hear("wide", MigrationClaimed(offer.id, 0, 0, offer.slot, offer.epoch + 1))
    number = node.sent(ClaimQuestions)[-1][1].questions[0].number
    node.hear("wide", ClaimAnswers(9, [Standing(0, 0, offer.slot, number, offer.epoch + 1)]))
    assert node.sent(MigrationAcked)
    node.wait(1)
    assert node.machine.custody == {E1: 0, E2: 1}


def test_a_full_node_gives_several_small_experts_away_for_a_large_one():
    """Seed 100529 of the simulator: the only one who stored an expert had two smaller ones, each too small alone."""
    node = Alone(3, capacity=2, on_disk=(0, 1, 2), sizes={2: 2 * SIZE})
    node.see(view("far", claims={2: 0}))
    node.wait(5)
    assert node.machine.custody == {E0: 0, E1: 0}
    node.see(view("wide", capacity=3, free=3))
    node.wait(10)
    (peer, offer), *_ = node.sent(MigrationOffer)
    assert (peer, offer.index) == ("wide", 0)
    node.hear("wide", MigrationClaimed(offer.id, 0, 0, offer.slot, offer.epoch + 1))
    number = node.sent(ClaimQuestions)[-1][1].questions[0].number
    node.hear("wide", ClaimAnswers(9, [Standing(0, 0, offer.slot, number, offer.epoch + 1)]))
    node.see(view("wide", capacity=3, free=2, claims={0: 0}))
    node.wait(10)
    assert [offer.index for _, offer in node.sent(MigrationOffer)][-1] == 1
    assert node.machine.custody == {E1: 0}, "what is promised is kept until it is taken over"


def test_few_small_experts_are_not_given_for_a_large_one_that_would_not_fit_then():
    node = Alone(3, capacity=2, on_disk=(0, 1, 2), sizes={2: 3 * SIZE})
    node.wait(5)
    node.see(view("wide", capacity=9, free=9))
    node.wait(60)
    assert not node.sent(MigrationOffer)


def test_pieces_asked_for_in_advance_are_bounded_over_all_experts_and_the_first_ones_come_first():
    mib = 1 << 20
    node = Alone(3, capacity=20_000, on_disk=(), sizes={0: 6 * mib, 1: 3 * mib, 2: 3 * mib})
    node.see(view("far", claims={0: 0, 1: 0, 2: 0}))
    node.feed(Want((E0, E1, E2)))
    asked = [(piece.expert, piece.offset) for piece in node.of(RequestPiece)]
    assert asked == [(E0, number * mib) for number in range(4)]
    for number in range(6):
        node.feed(PieceArrived(E0, "far", number * mib, mib))
        node.wait(0.02)  # the token bucket fills
    asked = [(piece.expert, piece.offset // mib) for piece in node.of(RequestPiece)]
    assert asked == [(E0, 0), (E0, 1), (E0, 2), (E0, 3), (E0, 4), (E0, 5), (E1, 0), (E1, 1), (E1, 2), (E2, 0)]


def test_a_lost_expert_is_reported_when_the_last_who_stores_it_goes():
    node = Alone(2, capacity=1, on_disk=(0,))
    node.see(view("a", stores=True, state="leaving"))
    node.wait(20)
    assert node.machine.custody == {E0: 0}
    assert not node.of(Lost), "there is no room for it, but it is not lost"
    node.see()
    node.wait(20)
    assert node.of(Lost) == [Lost(E1)]
    node.see(view("a", stores=True))
    assert node.of(Found) == [Found(E1)]
