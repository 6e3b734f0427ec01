"""Seeds of the whole simulator: clean ones, and bugs planted in each machine, which some seed must find."""

import os
import re
import subprocess
import sys
from unittest import mock

import pytest
from click.testing import CliRunner

from meshmoe.cli.sim import sim
from meshmoe.custody.ledger import Ledger
from meshmoe.custody.rule import CustodyRule
from meshmoe.gossip.replica import Replica
from meshmoe.gossip.store import Store
from meshmoe.membership.table import MemberTable
from meshmoe.sim import InvariantError, run_seed
from tests.custody.exhaustive.mutants import ForgetMinted


@pytest.mark.parametrize("seed", range(12))
def test_seed_is_clean(seed):
    outcome = run_seed(seed)
    assert outcome.messages > 500
    assert set(outcome.settled_s) == {"membership", "custody", "gossip"}


def test_a_seed_repeats_itself_exactly():
    first, second = [], []
    assert run_seed(5, say=first.append) == run_seed(5, say=second.append)
    assert first == second
    assert run_seed(6).messages != run_seed(5).messages


def test_a_seed_repeats_itself_in_another_process():
    code = "from meshmoe.sim import run_seed; run_seed(9, say=print)"
    logs = []
    for hash_seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        logs.append(subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True))
    assert logs[0].stdout == logs[1].stdout
    assert b"starts as" in logs[0].stdout


# -- the tester is tested ------------------------------------------------------------


class AnyAnswerWillDo(CustodyRule):
    """Takes every answer, also a no, for leave to go."""

    def denied(self, custody, ask_id):
        return custody._replace(ask=None, claim=None)

    def confirmed(self, custody, ask_id, slot, peer, claim, now_s):
        return custody._replace(ask=None, claim=None)


def never_refute(self, update):
    """Membership that lets others say of it what they will."""


def keep_showing_the_dead(self, node, generation, now):
    """Gossip that does not hide whom membership holds for dead."""


absorb_rightly = Replica.absorb


def overlook_gaps(self, delta):
    """Gossip that believes to have everything up to the newest delta."""
    changed, gap = absorb_rightly(self, delta)
    if gap:
        self.upto = max(self.upto, delta.upto)
    return changed, False


def reserve_without_room(self, expert, size_bytes):
    """Custody that promises room that it does not have."""
    if expert not in self._taken:
        self._taken[expert] = size_bytes
        self.taken_bytes += size_bytes
    return True


PLANTED = {
    "membership never refutes": (MemberTable, "_hear_of_me", never_refute, "L1"),
    "gossip overlooks gaps": (Replica, "absorb", overlook_gaps, "L2|gossip|custody"),
    "gossip shows the dead": (Store, "die", keep_showing_the_dead, "L2|gossip|custody"),
    "custody has no bounds": (Ledger, "reserve", reserve_without_room, "S3"),
}

SEEDS_MAX = 250
"""Seeds from 0 on within which every bug must be found; most are by the first few."""


def found_by(invariant, rule=None):
    """The first seed that breaks an invariant; which one is printed."""
    for seed in range(SEEDS_MAX):
        try:
            run_seed(seed, rule=rule)
        except InvariantError as error:
            assert re.match(invariant, str(error)), error
            sys.stdout.write(f"found by seed {seed}: {str(error).splitlines()[0]}\n")
            return seed
    raise AssertionError(f"no seed below {SEEDS_MAX} finds it")


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bug_is_found(name):
    owner, attribute, bug, invariant = PLANTED[name]
    with mock.patch.object(owner, attribute, bug):
        found_by(invariant)


@pytest.mark.parametrize(
    ("rule", "invariant"), [(AnyAnswerWillDo(), "S1"), (ForgetMinted(), "S4")], ids=lambda value: type(value).__name__
)
def test_planted_rule_is_found(rule, invariant):
    found_by(invariant, rule)


# -- the command ------------------------------------------------------------


def test_command_reports_clean_seeds():
    result = CliRunner().invoke(sim, ["--seed", "0", "--count", "2"])
    assert result.exit_code == 0, result.output
    assert "2 seeds, 0 failed" in result.output


def test_command_says_how_to_replay_a_failure():
    with mock.patch.object(Ledger, "reserve", reserve_without_room):
        result = CliRunner().invoke(sim, ["--seed", "0", "--count", "2"])
    assert result.exit_code == 1
    assert "meshmoe sim --seed 0 --verbose" in result.output
    assert "S3" in result.output
