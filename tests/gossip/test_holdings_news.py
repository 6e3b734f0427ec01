"""Only layers that changed are told, and a layer that became empty is one of them."""

from meshmoe.core.ids import ExpertId
from meshmoe.gossip import Holdings, HoldingsNews


def test_changes_are_told_once():
    news = HoldingsNews()
    held = [ExpertId(0, 1), ExpertId(0, 4), ExpertId(2, 7)]
    assert news.of(held) == [Holdings.of(0, [1, 4]), Holdings.of(2, [7])]
    assert news.of(held) == []
    assert news.of([*held[:2], ExpertId(3, 0)]) == [Holdings.of(2, []), Holdings.of(3, [0])]
    assert news.of([]) == [Holdings.of(0, []), Holdings.of(3, [])]


def test_an_expert_that_comes_or_goes_is_told_with_its_layer():
    news = HoldingsNews()
    news.of([ExpertId(0, 1), ExpertId(2, 7)])
    assert news.of_one(ExpertId(0, 4), True) == [Holdings.of(0, [1, 4])]
    assert news.of_one(ExpertId(0, 4), True) == []
    assert news.of_one(ExpertId(3, 2), False) == []
    assert news.of_one(ExpertId(2, 7), False) == [Holdings.of(2, [])]
    # What was told one by one is not told again, and what was not is.
    assert news.of([ExpertId(0, 1), ExpertId(0, 4)]) == []
    assert news.of([ExpertId(0, 1)]) == [Holdings.of(0, [1])]
