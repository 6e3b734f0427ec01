"""Loops give the same whether they are compiled or not."""

import subprocess
import sys

import numpy as np

from meshmoe.placement.compiled import compiled

SCRIPT = """
import sys
if {without}:
    sys.modules["numba"] = None
from meshmoe.placement.policies import Negotiated
from tests.placement.worlds import small_world
print(Negotiated().place(small_world(3, tokens=40, prefill=True)).nonzero())
assert ("numba" in sys.modules and sys.modules["numba"] is not None) != {without}
"""


def test_a_placement_needs_no_numba():
    with_it, without = (
        subprocess.run(
            [sys.executable, "-c", SCRIPT.format(without=without)],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for without in (False, True)
    )
    assert with_it and with_it == without


def test_nothing_is_compiled_before_it_is_called():
    @compiled
    def double(values):
        for i in range(len(values)):
            values[i] *= 2
        return values

    assert double.__wrapped__(np.arange(3.0)).tolist() == double(np.arange(3.0)).tolist() == [0, 2, 4]
