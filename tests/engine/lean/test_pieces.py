"""Pieces of prompts fill the time that a step may take, whatever rows cost, and do not exceed it."""

from __future__ import annotations

import pytest

from meshmoe.engine.lean.model import ROWS_MAX
from meshmoe.engine.lean.pieces import ROWS_FIRST_ALONE, ROWS_MIN, PieceRows


def read(pieces, cost, target_s, beside, tokens, position=0):
    """Read a prompt piece by piece; returns what each took."""
    took = []
    while tokens:
        allowed = pieces.within(target_s, beside)
        rows = min(allowed, tokens)
        took.append(cost(rows, position))
        pieces.took(rows, allowed, took[-1], beside)
        tokens, position = tokens - rows, position + rows
    return took


@pytest.mark.parametrize("base_ms", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("row_ms", [0.02, 0.1, 0.15])
def test_pieces_come_to_take_what_they_may_and_never_more_before(base_ms, row_ms):
    took = read(PieceRows(), lambda rows, _: 1e-3 * (base_ms + row_ms * rows), 4e-3, True, 4096)
    assert max(took) <= 4e-3 + 1e-9
    longest = min(ROWS_MAX, int((4 - base_ms) / row_ms))
    assert took[-2] >= 1e-3 * (base_ms + row_ms * (0.8 * longest - 1)), "and they are not shorter than they need be"


def test_a_prompt_whose_later_rows_attend_to_more():
    pieces = PieceRows()
    for _ in range(3):  # the next prompt begins with cheap rows again
        took = read(pieces, lambda rows, at: 1e-3 * (0.5 + rows * (0.1 + 0.2 * at / 1024)), 4e-3, True, 1024)
        assert max(took) < 1.2 * 4e-3


def test_what_takes_long_whatever_is_done_gets_as_few_rows_as_are_worth_a_step():
    pieces = PieceRows()
    read(pieces, lambda rows, _: 0.01 + 0.001 * rows, 4e-3, True, 200)
    assert pieces.within(4e-3, True) == ROWS_MIN


def test_a_prompts_short_end_says_little_of_whole_pieces():
    pieces = PieceRows()
    read(pieces, lambda rows, _: 1e-3 * (1 + 0.1 * rows), 4e-3, True, 2000)
    before = pieces.within(4e-3, True)
    for _ in range(5):  # a single row that takes a millisecond
        pieces.took(1, before, 1.1e-3, True)
    assert pieces.within(4e-3, True) > 0.5 * before
    first = PieceRows()
    first.took(1, ROWS_FIRST_ALONE, 5e-3, False)
    assert first.within(0.1, False) == ROWS_FIRST_ALONE


def test_one_stall_does_not_make_pieces_short_and_slowness_that_lasts_does():
    pieces, cost = PieceRows(), lambda rows, _: 1e-3 * (1 + 0.1 * rows)
    read(pieces, cost, 4e-3, True, 2000)
    before = pieces.within(4e-3, True)
    pieces.took(before, before, 5.0, True)
    assert pieces.within(4e-3, True) > 0.5 * before
    took = read(pieces, lambda rows, _: 2 * cost(rows, 0), 4e-3, True, 1000)
    assert took[0] > 1.05 * 4e-3 >= max(took[12:])


def test_short_pieces_beside_writers_and_long_ones_alone_are_measured_apart():
    pieces = PieceRows()
    cost = lambda rows, _: 1e-3 * (2 + 0.05 * rows)  # noqa: E731
    read(pieces, cost, 4e-3, True, 500)
    read(pieces, cost, 0.1, False, 1000)
    assert pieces.within(0.1, False) == ROWS_MAX
    assert cost(pieces.within(4e-3, True), 0) <= 4e-3
