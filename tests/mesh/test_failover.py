"""A node is killed in the middle of ten streams elsewhere: none of them shows it. More cases: ``make failover``."""

import pytest
import trio

from tests.mesh.failover import run_case, tokens_alone

pytestmark = pytest.mark.mesh

TOKENS = 24


def test_a_killed_node_changes_no_token_of_ten_streams_elsewhere():
    expected = trio.run(tokens_alone, TOKENS)
    outcome = trio.run(run_case, "kill", TOKENS, expected)
    assert outcome.longest_pause_s < 30
