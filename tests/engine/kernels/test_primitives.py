"""Numbers in memory, and the one order of every sum of products."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmoe.engine.kernels import arithmetic, primitives
from meshmoe.engine.kernels.compiling import jit

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@jit
def one_dot(tag, w, x, y, n):
    primitives.dots_1x1(tag, w, n, x, n, y, 1, n, n)


@jit
def rounded_all(tag, x, n):
    for i in range(n):
        primitives.write(primitives.F32_TAG, x, i, primitives.rounded(tag, primitives.read(primitives.F32_TAG, x, i)))


def fma(a, b, c):
    # Exact in 64 bits of mantissa but for the rarest of ties, then rounded once.
    return np.float32(np.longdouble(a) * np.longdouble(b) + np.longdouble(c))


def ordered_dot(w, x, paired):
    """The order of `primitives`, spelled out."""
    sums, n = np.zeros((2, 16), np.float32), len(w)
    width = 32 if paired else 16
    summed = n // 16 * 16
    for begin in range(0, summed, width):
        vector = begin // width % 2 if begin < n // (2 * width) * 2 * width else 0
        for i in range(begin, min(begin + width, summed)):
            # Of a pair the second comes first.
            i = i ^ 1 if paired else i
            place = (vector, (i - begin) // 2 if paired else i - begin)
            sums[place] = fma(w[i], x[i], sums[place])
    total = sums[0] + sums[1]
    while len(total) > 1:
        total = total[: len(total) // 2] + total[len(total) // 2 :]
    result = total[0]
    for i in range(summed, n):
        result = fma(w[i], x[i], result)
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 32, 48, 63, 64, 79, 80, 96, 100, 112, 256])
def test_a_sum_has_the_order_that_is_written_down(dtype, n):
    generator = torch.Generator().manual_seed(n)
    w, x = torch.randn(n, generator=generator).to(dtype), torch.randn(n, generator=generator).to(dtype)
    y = torch.zeros(1)
    one_dot(primitives.TAGS[dtype], w.data_ptr(), x.data_ptr(), y.data_ptr(), n)
    assert y.item() == ordered_dot(w.float().numpy(), x.float().numpy(), dtype is torch.bfloat16)


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
