"""What a node alone writes, once for all tests of a worker that compare with it."""

import pytest
import trio

from tests.mesh.failover import tokens_alone

TOKENS = 24
"""Of each stream of a fault."""


@pytest.fixture(scope="session")
def expected():
    return trio.run(tokens_alone, TOKENS)
