"""Memory for weights: where it begins, what it costs, and that large pages are asked for."""

import re
import sys
from pathlib import Path

import pytest

from meshmoe.model.tensors import ALIGNMENT_BYTES, aligned_buffer

HUGE = 2 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def mapping_of(buffer):
    """The entry of /proc/self/smaps that a buffer begins in."""
    for entry in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE):
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", entry)
        if found and int(found[1], 16) <= buffer.data_ptr() < int(found[2], 16):
            return entry
    raise AssertionError("no such mapping")


def resident_bytes():
    found = re.search(r"^Rss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), flags=re.MULTILINE)
    return int(found[1]) << 10


@pytest.mark.parametrize("size_bytes", [1, 100, 64 << 10, HUGE - 1, HUGE, 3 << 20, (5 << 20) + 7])
def test_a_buffer_is_aligned_of_its_size_and_writable(size_bytes):
    buffer = aligned_buffer(size_bytes)
    assert buffer.numel() == size_bytes
    assert buffer.data_ptr() % (HUGE if sys.platform == "linux" and size_bytes >= HUGE else ALIGNMENT_BYTES) == 0
    buffer.fill_(3)
    assert int(buffer[-1]) == 3


@linux
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without large pages")
def test_large_pages_are_asked_for_where_they_fit():
    assert re.search(r"VmFlags:.* hg", mapping_of(aligned_buffer(3 << 20)))
    assert not re.search(r"VmFlags:.* hg", mapping_of(aligned_buffer(HUGE - 1)))


@linux
def test_large_pages_take_no_more_memory_than_the_weights():
    aligned_buffer(3 << 20).fill_(1)
    before = resident_bytes()
    kept = [aligned_buffer((3 << 20) + 4096).fill_(1) for _ in range(32)]
    assert resident_bytes() - before < sum(buffer.numel() for buffer in kept) + (4 << 20)
    del kept
    assert resident_bytes() - before < 4 << 20
