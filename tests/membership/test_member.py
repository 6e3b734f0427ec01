"""The order of standings and the rule of second-hand deaths: tables, and the laws of a semilattice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmoe.membership.member import MemberState, Standing, hear, merge

ALIVE, SUSPECT, DEAD, LEFT = MemberState

standings = st.builds(
    Standing,
    generation=st.integers(1, 3),
    incarnation=st.integers(0, 3),
    state=st.sampled_from(MemberState),
)


def at(text):
    """``"2.1 suspect"`` is generation 2, incarnation 1."""
    numbers, state = text.split()
    generation, incarnation = numbers.split(".")
    return Standing(int(generation), int(incarnation), MemberState[state.upper()])


@pytest.mark.parametrize(
    ("ours", "theirs", "holds"),
    [
        # Equal incarnation: the worse news wins.
        ("1.0 alive", "1.0 suspect", "1.0 suspect"),
        ("1.0 suspect", "1.0 dead", "1.0 dead"),
        ("1.0 dead", "1.0 alive", "1.0 dead"),
        # A refutation wins over every accusation of the incarnations before.
        ("1.0 suspect", "1.1 alive", "1.1 alive"),
        ("1.0 dead", "1.1 alive", "1.1 alive"),
        ("1.1 alive", "1.0 dead", "1.1 alive"),
        # Farewells are final within a life.
        ("1.0 left", "1.7 alive", "1.0 left"),
        ("1.0 left", "1.7 dead", "1.0 left"),
        # A later life wins over everything.
        ("1.9 alive", "2.0 alive", "2.0 alive"),
        ("1.0 left", "2.0 alive", "2.0 alive"),
        ("1.9 dead", "2.0 suspect", "2.0 suspect"),
        ("2.0 dead", "1.9 alive", "2.0 dead"),
    ],
)
def test_the_order(ours, theirs, holds):
    assert merge(at(ours), at(theirs)) == at(holds) == merge(at(theirs), at(ours))


@pytest.mark.parametrize(
    ("known", "news", "holds"),
    [
        # Death by hearsay is suspicion.
        ("1.0 alive", "1.0 dead", "1.0 suspect"),
        ("1.0 alive", "1.2 dead", "1.2 suspect"),
        ("1.0 suspect", "1.0 dead", None),
        ("1.0 alive", "2.0 dead", "2.0 suspect"),
        # Whoever passed the verdict itself keeps to it.
        ("1.0 dead", "1.0 dead", None),
        ("1.0 dead", "1.3 dead", "1.3 dead"),
        ("1.0 dead", "1.0 suspect", None),
        ("1.0 dead", "1.1 suspect", "1.1 suspect"),
        # A refuted accusation changes nothing.
        ("1.1 alive", "1.0 dead", None),
        ("1.1 alive", "1.0 suspect", None),
        # A farewell is believed at once, and only in its own life.
        ("1.3 alive", "1.0 left", "1.0 left"),
        ("2.0 alive", "1.0 left", None),
        # Strangers enter alive or suspect.
        (None, "1.0 alive", "1.0 alive"),
        (None, "1.0 suspect", "1.0 suspect"),
        (None, "1.0 dead", None),
        (None, "1.0 left", None),
    ],
)
def test_hearsay(known, news, holds):
    assert hear(at(known) if known else None, at(news)) == (at(holds) if holds else None)


@given(standings, standings, standings)
def test_merging_is_a_semilattice(a, b, c):
    assert merge(a, b) == merge(b, a)
    assert merge(a, merge(b, c)) == merge(merge(a, b), c)
    assert merge(a, a) == a


@given(standings, st.lists(standings, max_size=8))
def test_what_is_held_only_rises(known, heard):
    for news in heard:
        after = hear(known, news)
        if after is not None:
            assert after.rank > known.rank
            known = after


@given(st.permutations([at(text) for text in ("1.0 suspect", "1.1 alive", "1.1 suspect", "1.2 alive", "1.0 alive")]))
def test_order_of_hearing_does_not_matter(heard):
    known = at("1.0 alive")
    for news in heard:
        known = hear(known, news) or known
    assert known == at("1.2 alive")
