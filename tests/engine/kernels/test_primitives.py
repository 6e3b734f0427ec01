"""Numbers in memory and their rounding, and functions of them."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmoe.engine.kernels import arithmetic, primitives
from meshmoe.engine.kernels.compiling import jit

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@jit
def rounded_all(tag, x, n):
    for i in range(n):
        primitives.write(primitives.F32_TAG, x, i, primitives.rounded(tag, primitives.read(primitives.F32_TAG, x, i)))


@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.sampled_from(DTYPES))
@settings(deadline=None)
def test_rounding_is_torchs(numbers, dtype):
    x = torch.tensor(numbers, dtype=torch.float32)
    expected = x.to(dtype).float()
    rounded_all(primitives.TAGS[dtype], x.data_ptr(), len(x))
    assert torch.equal(x.nan_to_num(nan=0.5), expected.nan_to_num(nan=0.5))
    assert torch.equal(x.isnan(), expected.isnan())


@given(st.lists(st.floats(-87, 88, width=32), min_size=1, max_size=40))
@settings(deadline=None)
def test_exp_is_within_two_units_in_the_last_place(numbers):
    for number in numbers:
        exact = np.exp(np.float64(number))
        assert abs(np.float64(arithmetic.exp(np.float32(number))) - exact) <= 2 * np.spacing(np.float32(exact))


def test_exp_beyond_its_range():
    assert 0 < arithmetic.exp(np.float32(-1e30)) < 1.3e-38
    assert 2e38 < arithmetic.exp(np.float32(1e30)) < np.inf
    assert arithmetic.sigmoid(np.float32(-200)) < 1e-37
    assert arithmetic.sigmoid(np.float32(200)) == 1
