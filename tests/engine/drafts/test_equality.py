"""Texts of five domains with drafts are those of a node alone; ``tests.engine.draft_equality`` writes 10,000 tokens."""

from __future__ import annotations

import pytest

from meshmoe.engine.drafts.drafting import Drafting
from tests.engine.draft_equality import Wanted, write

WANTED = Wanted(texts=2, tokens=32)


@pytest.fixture(scope="module")
def alone():
    return write(WANTED, "off", alone=True)


@pytest.mark.parametrize("mode", ["off", "4", "lookup", "auto"])
def test_every_token_is_that_of_a_node_alone(alone, mode):
    written = write(WANTED, mode)
    assert written.texts == alone.texts
    assert written.same_as(alone) == 5 * 2 * 32
    if mode == "4":
        assert 0 < written.accepted < written.drafted, "right ones and wrong ones were checked"
        assert written.passes == 5 * 2 * 31 - written.accepted
    if mode == "off":
        assert not written.drafted


def test_a_wrong_draft_taken_for_a_right_one_is_found(alone, monkeypatch):
    accept = Drafting._accept

    def careless(self, batch, one, growth, logits, begin):
        found, nodes = accept(self, batch, one, growth, logits, begin)
        if growth.tree.nodes and len(found) == 1:
            found = [found[0]._replace(token_id=growth.tree.nodes[0][0])]
        return found, nodes

    monkeypatch.setattr(Drafting, "_accept", careless)
    assert write(WANTED, "4").same_as(alone) < alone.tokens
