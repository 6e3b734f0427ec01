"""A sketch says what the table says, weighs as much as all of it, and nonsense is turned down."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmoe.placement.sketch import SLOTS_MAX, Sketch, shortened, sketch_of, table_of
from meshmoe.placement.table import tabulate
from tests.placement.worlds import small_world


def tables(**more):
    world = small_world(1, tokens=300, prefill=True, **more)
    return world, tabulate(world.shape, world.specs[0], world.traces[0])


def weight(table):
    return (np.repeat(table.rates, np.diff(table.first_slot)) * table.rows).sum()


def test_over_the_wire_a_table_stays_as_it_is():
    world, table = tables()
    sketch = msgspec.msgpack.decode(msgspec.msgpack.encode(sketch_of(7, world.specs[0], table)), type=Sketch)
    again = table_of(sketch, world.shape)
    for field in ("first_step", "first_slot", "place", "rows", "uses", "first_use"):
        assert (getattr(again, field) == getattr(table, field)).all()
    assert again.rates == pytest.approx(table.rates, rel=1e-6)
    assert again.local_s == pytest.approx(table.local_s)


@pytest.mark.parametrize("slots_max", [64, 200, SLOTS_MAX])
def test_shortened_it_weighs_the_same_in_few_slots(slots_max):
    world, table = tables()
    short = shortened(table, world.shape, slots_max)
    assert len(short.place) <= max(slots_max, 0) or slots_max == SLOTS_MAX
    assert weight(short) == pytest.approx(weight(table))
    assert set(zip(short.place, short.rows, strict=True)) <= set(zip(table.place, table.rows, strict=True))


@given(st.sampled_from(["steps", "slots", "experts", "rows", "rates"]), st.binary(max_size=64))
def test_nonsense_is_turned_down_or_is_a_table(field, blob):
    world, table = tables()
    sketch = sketch_of(7, world.specs[0], table)
    found = table_of(msgspec.structs.replace(sketch, **{field: blob}), world.shape)
    if found is not None:
        assert (found.expert < world.shape.experts).all()
        assert np.isfinite(found.rates).all()
        assert found.first_slot[-1] == len(found.place)


def test_experts_that_the_model_has_not_are_turned_down():
    world, table = tables()
    sketch = sketch_of(7, world.specs[0], table)
    wrong = np.full(len(table.place), 8, "<u2").tobytes()
    assert table_of(msgspec.structs.replace(sketch, experts=wrong), world.shape) is None
    endless = np.full(len(table.rates), np.nan, "<f4").tobytes()
    assert table_of(msgspec.structs.replace(sketch, rates=endless), world.shape) is None
