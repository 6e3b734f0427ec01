"""A node is killed in the middle of ten streams elsewhere: none of them shows it. More cases: ``make failover``."""

import pytest
import trio

from tests.mesh.conftest import TOKENS
from tests.mesh.failover import VERIFY, run_case

pytestmark = pytest.mark.mesh


def test_a_killed_node_changes_no_token_of_ten_streams_elsewhere(expected):
    outcome = trio.run(run_case, "kill", TOKENS, expected)
    assert outcome.longest_pause_s < 30


def test_nor_does_one_that_is_killed_while_it_checks_drafts(expected):
    outcome = trio.run(run_case, VERIFY, TOKENS, expected)
    reports = [stream.report for stream in outcome.streams]
    assert all(report["drafted_tokens"] > 0 for report in reports), "every stream drafts"
    assert any(report["accepted_tokens"] > 0 for report in reports)
    assert any(report["retries"] > 0 for report in reports), "no pass was under way at the victim when it died"
