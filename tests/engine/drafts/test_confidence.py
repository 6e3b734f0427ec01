"""What is known of a draft's chances by its own probability, and when drafting stops."""

from __future__ import annotations

import random

import pytest

from meshmoe.engine.drafts.chooser import FIRST_PASSES, LengthChooser
from meshmoe.engine.drafts.confidence import LOOKED_UP, WIDTH, Confidence, Guess, Text
from meshmoe.engine.drafts.length import Prospect


def test_chances_are_learned_and_followed():
    confidence, rng = Confidence(), random.Random(1)

    def chance(probability, **what):
        return confidence.chance(Guess(7, probability, **what))

    assert chance(0.0) < chance(0.5) < chance(1.0) == 1.0, "before anything was seen"
    for _ in range(3000):
        probability = rng.random()
        confidence.note(Guess(7, probability), rng.random() < probability**2)
    for probability in (0.05, 0.45, 0.95):
        assert chance(probability) == pytest.approx(probability**2, abs=0.1)
    assert chance(0.45, rank=1) > 0.4, "second choices are another matter"
    for _ in range(1000):
        confidence.note(Guess(7, 0.05), True)
    assert chance(0.05) > 0.9 > 0.4 > chance(0.45), "old experience fades, each kind for itself"
    assert confidence.chance(Guess(7)) == 1.0


def test_what_the_text_says_counts_before_anything_was_seen():
    confidence = Confidence()
    for rank in (*range(WIDTH), LOOKED_UP):
        chances = {text: confidence.chance(Guess(7, 0.1, rank, text)) for text in Text}
        assert chances[Text.SURELY_SAME] > chances[Text.SAME] > chances[Text.SILENT] >= chances[Text.OTHER]
        assert chances[Text.OTHER] >= chances[Text.SURELY_OTHER]


def chooser(pass_s, row_s, draft_s):
    """One that knows how long passes take."""
    made = LengthChooser()
    for rows in (1, 2, 3, 5, 9) * 20:
        made.note_pass(rows, pass_s + row_s * rows, pass_s)
        made.note_draft(rows, draft_s)
    for _ in range(FIRST_PASSES):
        made.lengths([])
    return made


def test_the_bar_is_what_a_token_more_costs_at_the_present_rate():
    made = chooser(pass_s=0.080, row_s=0.005, draft_s=0.001)
    prospects = [Prospect([0.8**d for d in range(1, 17)], costs=True)]
    lengths = made.lengths(prospects)
    bar = made.bar(prospects, lengths)
    tokens = 1 + sum(0.8**d for d in range(1, lengths[0] + 1))
    rate = tokens / (0.080 + 0.005 * (1 + lengths[0]) + 0.001 * lengths[0])
    assert bar.checked == pytest.approx(rate * 0.005, rel=0.05)
    assert bar.drafted == pytest.approx(rate * 0.006, rel=0.05)
    # At the best length, the next token is not worth its time any more, and the last one was.
    assert 0.8 ** (lengths[0] + 1) < bar.drafted * 1.1
    assert 0.8 ** lengths[0] > bar.drafted * 0.9


def test_where_drafting_costs_much_it_stops_sooner():
    prospects = [Prospect([0.8**d for d in range(1, 17)], costs=True)] * 2
    cheap, dear = (chooser(0.080, 0.005, draft_s) for draft_s in (0.001, 0.010))
    bars = [made.bar(prospects, made.lengths(prospects)) for made in (cheap, dear)]
    assert bars[0].drafted < bars[1].drafted
    assert all(bar.checked < bar.drafted for bar in bars)


def test_what_is_checked_is_worth_its_time_together():
    """Against trying all numbers; where rows cost less and less, not up to the first that is not worth its own."""
    made = LengthChooser()
    for rows in (1, 2, 3, 5, 9, 14) * 20:
        made.note_pass(rows, 0.1 * (1 - 0.5**rows) + 0.001 * rows, 0.1 * (1 - 0.5**rows))
    chances = [0.4, 0.3, 0.3, 0.28, 0.25, 0.2, 0.05, 0.01]
    found = {}
    for rate in (5.0, 16.0, 100.0):
        worth = {
            n: sum(chances[:n]) - rate * (0.1 * (0.5 - 0.5 ** (1 + n)) + 0.001 * n) for n in range(len(chances) + 1)
        }
        found[rate] = made.keep(chances, 1, rate)
        assert worth[found[rate]] == pytest.approx(max(worth.values()), abs=0.03)
    assert found[5.0] > found[16.0] > found[100.0] == 0
    assert chances[0] < 16.0 * (0.1 * 0.25 + 0.001) + 0.01, "the first alone is hardly worth its row"


def test_the_bar_is_lower_where_trees_are_wide():
    """A row more waits for less the more there are."""
    made = LengthChooser()
    for rows in (1, 2, 3, 5, 9, 14) * 20:
        made.note_pass(rows, 0.1 * (1 - 0.6**rows), 0.1 * (1 - 0.6**rows))
        made.note_draft(1, 0.0001)
    prospects = [Prospect([0.7**d for d in range(1, 17)], costs=True)]
    before = made.bar(prospects, [3])
    for _ in range(60):
        made.note_rows(4, 10)
    assert made.bar(prospects, [3]).drafted < 0.5 * before.drafted
    for _ in range(200):
        made.note_rows(12, 1)
    narrow = made.bar(prospects, [1])
    assert 0 <= narrow.checked <= narrow.drafted, "where hardly anything was worth checking, too"
    assert narrow.drafted > before.drafted
