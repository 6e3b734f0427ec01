"""Several threads at one product: the bits of one thread, whatever their number and whoever sleeps."""

import threading

import pytest
import torch

from meshmoe.engine.kernels import crew
from meshmoe.engine.kernels.crew import Crew, crew_here, desk_here, linear
from meshmoe.engine.kernels.primitives import TAGS


def multiply(tag, desk, w, bias, x):
    y = torch.full((x.shape[0], w.shape[0]), torch.nan)
    bias_at = 0 if bias is None else bias.data_ptr()
    linear(tag, desk, w.data_ptr(), bias_at, x.data_ptr(), y.data_ptr(), x.shape[0], w.shape[0], w.shape[1])
    return y


def matrices(dtype, rows, n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).to(dtype) for shape in ((n, k), (n,), (rows, k))]


@pytest.mark.parametrize("dtype", TAGS)
@pytest.mark.parametrize("rows,n,k", [(1, 512, 256), (1, 1001, 99), (5, 257, 128), (64, 96, 64), (3, 16, 2048)])
@pytest.mark.parametrize("helpers", [1, 3])
def test_bits_do_not_depend_on_the_number_of_threads(dtype, rows, n, k, helpers):
    w, bias, x = matrices(dtype, rows, n, k)
    alone = multiply(TAGS[dtype], 0, w, bias, x)
    with Crew(TAGS[dtype], helpers) as gang:
        for _ in range(20):
            gang.rouse()
            assert torch.equal(multiply(TAGS[dtype], gang.desk, w, bias, x), alone)
    assert rows * n * k < crew.SHARED_MIN or gang.offers == 20


def test_helpers_take_part():
    """A product is offered until a helper has computed something of it."""
    w, _, x = matrices(torch.float32, 64, 2048, 512)
    with Crew(TAGS[torch.float32], 1) as gang:
        for _ in range(2000):
            gang.rouse()
            multiply(TAGS[torch.float32], gang.desk, w, None, x)
            if gang.helped:
                return
    pytest.fail("the helper never took a piece")


def test_products_of_many_sizes_after_each_other_do_not_mix():
    work = [
        matrices(torch.bfloat16, rows, n, 256, seed) for seed, (rows, n) in enumerate([(1, 300), (2, 999), (7, 64)])
    ]
    tag = TAGS[torch.bfloat16]
    expected = [multiply(tag, 0, w, bias, x) for w, bias, x in work]
    with Crew(tag, 2) as gang:
        for number in range(3000):
            gang.rouse()
            w, bias, x = work[number % 3]
            assert torch.equal(multiply(tag, gang.desk, w, bias, x), expected[number % 3])


def test_small_products_and_other_dtypes_are_not_offered():
    with Crew(TAGS[torch.bfloat16], 1) as gang:
        w, _, x = matrices(torch.bfloat16, 1, 64, 64)
        multiply(TAGS[torch.bfloat16], gang.desk, w, None, x)
        w, _, x = matrices(torch.float32, 8, 512, 512)
        multiply(TAGS[torch.float32], gang.desk, w, None, x)
        assert gang.offers == 0


def test_a_crew_belongs_to_the_thread_that_entered_it_and_ends_with_it():
    before = threading.active_count()
    with Crew(TAGS[torch.float32], 2) as gang:
        assert crew_here() is gang and desk_here() == gang.desk
        assert threading.active_count() == before + 2
        seen = []
        other = threading.Thread(target=lambda: seen.append(desk_here()))
        other.start()
        other.join()
        assert seen == [0]
    assert desk_here() == 0
    assert threading.active_count() == before
