"""The fuzz targets on seeds, on inputs that once crashed them, on mutations; for hours: ``python -m tests.fuzz``."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, kept, seeds

MUTATIONS = 300


@pytest.fixture(scope="module")
def inputs():
    found = seeds()
    return {target: [*own, *kept(target)] for target, own in found.items()}


def mutated(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data or b"\0")
    for _ in range(rng.randrange(1, 6)):
        out = out or bytearray(1)
        at = rng.randrange(len(out))
        match rng.randrange(4):
            case 0:
                out[at] = rng.randrange(256)
            case 1:
                out[at : at + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(9))
            case 2:
                out[at:at] = out[at : at + rng.randrange(1, 40)]
            case 3:
                del out[at + 1 :]
    return bytes(out)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_mutations(name, inputs):
    rng = random.Random(name)
    given_inputs = inputs[name] or [b""]
    for data in given_inputs:
        TARGETS[name](data)
    for _ in range(MUTATIONS):
        TARGETS[name](mutated(rng.choice(given_inputs), rng))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=200))
def test_anything(name, data):
    TARGETS[name](data)
