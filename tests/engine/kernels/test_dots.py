"""The one order of every sum of products."""

import numpy as np
import pytest
import torch

from meshmoe.engine.kernels import dots, primitives
from meshmoe.engine.kernels.apart import dots_apart
from meshmoe.engine.kernels.arithmetic import columns, product
from meshmoe.engine.kernels.compiling import jit

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@jit
def one_dot(tag, w, x, y, n):
    dots.dots_1x1(tag, w, n, x, n, y, 1, n, n)


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


def single_sums(tag, w, x):
    y = torch.zeros(len(x), len(w))
    for i, row in enumerate(x):
        for j, weights in enumerate(w):
            one_dot(tag, weights.data_ptr(), row.data_ptr(), y[i, j].data_ptr(), w.shape[1])
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 18])
@pytest.mark.parametrize("n,k", [(1, 16), (7, 100), (8, 64), (19, 48), (33, 77), (24, 2048), (29, 528)])
def test_a_product_is_made_of_these_sums(dtype, rows, n, k):
    generator = torch.Generator().manual_seed(rows)
    w, x = (torch.randn(count, k, generator=generator).to(dtype) for count in (n, rows))
    y, tag = torch.full((rows, n), torch.nan), primitives.TAGS[dtype]
    product(tag, w.data_ptr(), x.data_ptr(), y.data_ptr(), rows, n, k)
    assert torch.equal(y, single_sums(tag, w, x))


@jit
def one_apart(tag, w, x, y, apart, n):
    dots_apart(tag, w, x, y, apart, n)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [16, 48, 64, 528])
def test_sums_read_in_several_places_at_once_are_these_sums(dtype, k):
    apart, tag = 6, primitives.TAGS[dtype]
    w, x, y = torch.randn(4 * apart, k).to(dtype), torch.randn(1, k).to(dtype), torch.full((1, 4 * apart), 7.0)
    one_apart(tag, w.data_ptr(), x.data_ptr(), y.data_ptr(), apart, k)
    computed = torch.tensor([apart * stream + row for stream in range(4) for row in range(2)])
    assert torch.equal(y[:, computed], single_sums(tag, w, x)[:, computed])
    assert (y == 7).sum() == 4 * apart - len(computed)


@pytest.mark.parametrize("rows", [1, 2])
def test_columns_leave_what_stands_between_their_results(rows):
    w, x, y = torch.randn(19, 40), torch.randn(rows, 40), torch.full((rows, 30), 7.0)
    columns(primitives.F32_TAG, w.data_ptr(), x.data_ptr(), y.data_ptr(), rows, 19, 40, 30)
    assert torch.equal(y[:, :19], single_sums(primitives.F32_TAG, w, x))
    assert (y[:, 19:] == 7).all()


@jit
def mixed(tag, w, x, y, rows, n, on):
    dots.mix(tag, w, n, x, y, rows, n, on)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 15, 16, 48, 64, 80, 100, 128, 137])
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_a_mixture_goes_row_after_row_whatever_stands_beside_a_number(dtype, n, rows):
    generator = torch.Generator().manual_seed(n + rows)
    w, x = torch.randn(rows, n, generator=generator).to(dtype), torch.randn(rows, generator=generator)
    begun = torch.randn(n, generator=generator)
    for on in (0, 1):
        y, expected = begun.clone(), begun.numpy() * np.float32(on)
        for row in range(rows):
            expected = np.array(
                [fma(x[row].numpy(), value, at) for value, at in zip(w[row].float().numpy(), expected, strict=True)]
            )
        mixed(primitives.TAGS[dtype], w.data_ptr(), x.data_ptr(), y.data_ptr(), rows, n, on)
        assert np.array_equal(y.numpy(), expected)
