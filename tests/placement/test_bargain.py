"""The settlement is optimal among lots, keeps both budgets, and is a function of its arguments only."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmoe.placement.bargain import Lot, settle

SIZES = np.array([10, 10, 10], np.int64)


def lots_and_prices(draw_lots):
    return [
        Lot(
            layer,
            one_adds=tuple(range(a)),
            one_drops=tuple(range(10, 10 + b)),
            two_adds=tuple(range(c)),
            two_drops=tuple(range(10, 10 + d)),
        )
        for layer, a, b, c, d, _ in draw_lots
    ], [price for *_, price in draw_lots]


LOT = st.tuples(
    st.integers(0, 2),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(-50, 100),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(LOT, max_size=7), st.integers(0, 45), st.integers(0, 45))
def test_it_is_the_best_choice_that_fits(drawn, room_one, room_two):
    lots, prices = lots_and_prices(drawn)
    chosen = settle(lots, prices, SIZES, (room_one, room_two))
    assert len({lots[i].layer for i in chosen}) == len(chosen)

    def fits(some):
        one = sum((len(lots[i].one_adds) - len(lots[i].one_drops)) * 10 for i in some)
        two = sum((len(lots[i].two_adds) - len(lots[i].two_drops)) * 10 for i in some)
        return one <= room_one and two <= room_two and len({lots[i].layer for i in some}) == len(some)

    assert fits(chosen)
    best = max(
        sum(prices[i] for i in some)
        for count in range(4)
        for some in itertools.combinations(range(len(lots)), count)
        if fits(some)
    )
    assert sum(prices[i] for i in chosen) == max(0, best)


def test_a_swap_across_layers_needs_no_room():
    take = Lot(0, to_one=(1, 2), one_adds=(1, 2), two_drops=(1, 2))
    give = Lot(1, to_two=(5, 6), one_drops=(5, 6), two_adds=(5, 6))
    assert settle([take, give], [100, -30], SIZES, (0, 0)) == [0, 1]
    assert settle([take], [100], SIZES, (0, 0)) == []
    assert settle([take, give], [100, -130], SIZES, (0, 0)) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(LOT, max_size=6), st.lists(st.integers(3, 17), min_size=3, max_size=3), st.integers(0, 80))
def test_with_unequal_sizes_bytes_are_kept(drawn, sizes, room):
    lots, prices = lots_and_prices(drawn)
    sizes = np.array(sizes, np.int64)
    chosen = settle(lots, prices, sizes, (room, room))
    for adds, drops in (("one_adds", "one_drops"), ("two_adds", "two_drops")):
        taken = sum((len(getattr(lots[i], adds)) - len(getattr(lots[i], drops))) * sizes[lots[i].layer] for i in chosen)
        assert taken <= room
