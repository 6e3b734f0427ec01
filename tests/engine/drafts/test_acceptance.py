"""The record of drafts: what it learns, and how the prior gives way."""

from __future__ import annotations

import random

import pytest

from meshmoe.engine.drafts.acceptance import DEPTH_MAX, Acceptance


def test_it_begins_with_the_prior():
    record = Acceptance([0.8, 0.6])
    assert record.chances()[:3] == pytest.approx([0.8, 0.6, 0.6])
    assert record.survival()[:3] == pytest.approx([0.8, 0.48, 0.288])
    assert len(record.survival()) == DEPTH_MAX


def test_it_learns_each_depth_and_what_lies_deeper():
    rng, record = random.Random(1), Acceptance([0.6])
    for _ in range(600):
        accepted = 0
        while accepted < 3 and rng.random() < (0.9, 0.5, 0.2)[accepted]:
            accepted += 1
        record.note(3, accepted)
    found = record.chances()
    assert found[:3] == pytest.approx([0.9, 0.5, 0.2], abs=0.2)
    assert found[0] > found[1] > found[2]
    assert found[3] == pytest.approx(found[2]), "never tried: as the one before"
    assert 600 < record.looked_at < 1800, "what came behind a wrong one was not"


def test_old_experience_fades():
    record = Acceptance([0.5])
    for _ in range(200):
        record.note(1, 1)
    assert record.chances()[0] > 0.9
    for _ in range(100):
        record.note(1, 0)
    assert record.chances()[0] < 0.2


def test_a_shorter_draft_says_nothing_of_greater_depths():
    record = Acceptance([0.7])
    record.note(2, 0)
    first, second = record.chances()[:2]
    assert first < 0.7
    assert second == pytest.approx(first), "never reached"
