"""Prompt lookup against a plain search of the text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshmoe.engine.drafts.lookup import CONTEXTS, PromptLookup


def searched(ids, count):
    """The same by looking through the whole text."""
    for n in CONTEXTS:
        for end in range(len(ids) - 1, n - 1, -1):
            if ids[end - n : end] == ids[-n:]:
                text = list(ids)
                for place in range(end, end + count):
                    text.append(text[place])
                return text[len(ids) :], n
    return [], 0


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 12), st.integers(0, 60))
def test_it_finds_what_a_search_finds(ids, count, known):
    lookup = PromptLookup(ids[:known])
    for token in ids[known:]:
        lookup.push(token)
    found, context = lookup.draft(count)
    assert (list(found), context) == searched(ids, count)


def test_a_loop_is_drafted_as_a_loop():
    assert PromptLookup([7, 8, 9, 7, 8, 9, 7, 8]).draft(5) == ([9, 7, 8, 9, 7], 5)


def test_nothing_known():
    assert PromptLookup([1, 2, 3, 4]).draft(4) == ((), 0)
    assert PromptLookup([]).draft(4) == ((), 0)
