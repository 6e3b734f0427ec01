"""Functions called through a pointer: whoever calls first, from however many threads, and when compiling fails."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.linking import linked
from meshmoe.engine.kernels.primitives import TAGS, kind_of

BROKEN = """
import numpy as np
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.linking import linked

def broken(tag, number):
    return number.nowhere

call_broken = linked(broken)

@jit
def caller(tag, number):
    return call_broken(tag, number)

print(caller(np.float32(0), 1), flush=True)
"""


def _weighed(tag, a, b):
    return 100 * a + 10 * b + kind_of(tag)


_call_weighed = linked(_weighed)


@jit
def weighed(tag, a, b):
    return _call_weighed(tag, a, b)


def test_each_dtype_has_its_own_and_the_first_calls_may_come_at_once():
    kinds = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
    for dtype, tag in TAGS.items():
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(weighed, 4 * [tag], 4 * [4], 4 * [2]))
        assert found == 4 * [420 + kinds[dtype]]
        assert weighed(tag, 0, 7) == 70 + kinds[dtype]  # now by way of the compiled function


def test_where_compiling_fails_the_process_ends_and_nothing_is_computed(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "broken.py")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 70
    assert done.stdout == ""
    assert "nowhere" in done.stderr
