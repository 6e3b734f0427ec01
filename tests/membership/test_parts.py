"""The small parts: health, rotation, news queue, timers, round trips, sizes."""

from random import Random

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import NodeId
from meshmoe.membership.awareness import Awareness
from meshmoe.membership.broadcast import BroadcastQueue
from meshmoe.membership.config import LAN, WAN, MembershipConfig
from meshmoe.membership.member import MemberState
from meshmoe.membership.messages import (
    MEMBERSHIP_MESSAGES,
    MemberNews,
    MemberSync,
    MemberUpdate,
    Probe,
    ProbeAck,
    ProbeNack,
    ProbeRequest,
    update_bytes,
)
from meshmoe.membership.rotation import Rotation
from meshmoe.membership.rtt import RttMeter
from meshmoe.membership.timers import Timers
from tests.membership.virtual import through_the_wire

ALIVE, SUSPECT, DEAD, LEFT = MemberState
HERE = Endpoints("10.0.0.1", 7000, 7001, 7002)

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True)
updates = st.builds(
    MemberUpdate,
    node=names,
    generation=st.integers(0, 2**63 - 1),
    incarnation=st.integers(0, 2**32 - 1),
    state=st.sampled_from(MemberState),
    endpoints=st.builds(Endpoints, host=st.text("abc.:", min_size=1, max_size=253), control_port=st.integers(0, 65535)),
    accusers=st.lists(names, max_size=8),
)


# -- health ------------------------------------------------------------


def test_failed_probes_count_by_missing_nacks():
    health = Awareness(LAN, 0.0)
    health.failed(nacks_expected=3, nacks=3)  # our links are sound: it is the target
    assert health.score(0) == 0
    health.failed(nacks_expected=3, nacks=1)
    assert health.score(0) == 2
    health.failed(nacks_expected=0, nacks=0)  # nobody to ask
    assert health.score(0) == 3


def test_health_stays_within_its_bounds():
    health = Awareness(LAN, 0.0)
    health.answered()
    assert health.score(0) == 0
    for _ in range(100):
        health.accused()
    assert health.score(0) == LAN.health_max - 1


def test_lag_is_a_level_that_decays():
    health = Awareness(LAN, 0.0)
    health.late(0.2, now=0.0)
    assert health.lag(0) == 0
    health.late(0.6, now=0.0)
    health.late(0.6, now=0.0)  # the same lateness, reported twice
    assert health.lag(0) == 2
    assert health.lag(LAN.late_decay_s) == 1
    assert health.lag(2 * LAN.late_decay_s) == 0
    assert health.score(0) == 2


# -- rotation ------------------------------------------------------------


def test_a_round_probes_everybody_once():
    rotation = Rotation(Random(1))
    members = {NodeId(f"n{i}") for i in range(20)}
    for member in sorted(members):
        rotation.add(member)
    for _ in range(3):
        assert {rotation.next(lambda _: True) for _ in members} == members


def test_rotation_skips_and_ends():
    rotation = Rotation(Random(1))
    for name in "abc":
        rotation.add(NodeId(name))
    assert {rotation.next(lambda node: node == "b") for _ in range(5)} == {"b"}
    assert rotation.next(lambda _: False) is None
    assert Rotation(Random(1)).next(lambda _: True) is None


@given(st.integers(0, 1000), st.lists(st.sampled_from("+-."), max_size=60))
def test_changes_within_a_round_lose_nobody(seed, steps):
    """Between two turns of a member that stays, there are at most two rounds."""
    rng, rotation, present, serial = Random(seed), Rotation(Random(seed)), [NodeId("stays")], 0
    rotation.add(NodeId("stays"))
    waited = longest = 0
    for step in steps * 3:
        if step == "+":
            serial += 1
            present.append(NodeId(f"n{serial}"))
            rotation.add(present[-1])
        elif step == "-" and len(present) > 1:
            gone = present.pop(rng.randrange(1, len(present)))
            rotation.remove(gone)
        turn = rotation.next(lambda _: True)
        assert turn in present
        waited = 0 if turn == "stays" else waited + 1
        longest = max(longest, waited)
    assert longest <= 2 * (serial + 1)


# -- news ------------------------------------------------------------


def news(node, incarnation=0, state=SUSPECT):
    return MemberUpdate(node, 1, incarnation, state, None)


def test_news_is_sent_a_limited_number_of_times():
    queue = BroadcastQueue()
    queue.put(news("a"))
    assert [len(queue.take(1000, limit=3)) for _ in range(5)] == [1, 1, 1, 0, 0]


def test_newer_news_of_a_member_replaces_older():
    queue = BroadcastQueue()
    queue.put(news("a", 0))
    queue.take(1000, limit=3)
    queue.put(news("a", 1))
    assert queue.take(1000, limit=3) == [news("a", 1)]
    assert len(queue) == 1


def test_least_sent_goes_first_and_newest_among_equals():
    queue = BroadcastQueue()
    queue.put(news("a"))
    queue.take(1000, limit=9)
    queue.put(news("b"))
    queue.put(news("c"))
    assert [update.node for update in queue.take(1000, limit=9)] == ["c", "b", "a"]


def test_news_keeps_to_its_budget():
    queue = BroadcastQueue()
    for index in range(50):
        queue.put(news(f"n{index}"))
    taken = queue.take(200, limit=9)
    assert sum(map(update_bytes, taken)) <= 200
    assert taken


def test_what_must_go_along_does():
    queue = BroadcastQueue()
    queue.put(news("a"))
    assert queue.take(0, limit=3, first=news("b")) == [news("b")]
    assert queue.take(1000, limit=3, first=news("a", 5)) == [news("a", 5)]


# -- timers ------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["set", "cancel", "pop"]), st.integers(0, 5), st.integers(0, 20))))
def test_timers_are_a_sorted_map(steps):
    timers, model = Timers(), {}
    for action, key, value in steps:
        if action == "set":
            timers.set(key, float(value))
            model[key] = float(value)
        elif action == "cancel":
            timers.cancel(key)
            model.pop(key, None)
        else:
            popped = timers.pop_due(float(value))
            due = {k: at for k, at in model.items() if at <= value}
            assert (popped is None) == (not due)
            if popped is not None:
                assert due[popped] == min(due.values())
                del model[popped]
        assert timers.next_s() == min(model.values(), default=float("inf"))


# -- round trips ------------------------------------------------------------


def test_round_trips():
    meter = RttMeter()
    assert meter.estimate is None
    for rtt_s in (0.004, 0.002, 0.100, 0.002, 0.003):
        meter.add(rtt_s)
    estimate = meter.estimate
    assert estimate.min_ms == pytest.approx(2)
    assert estimate.median_ms == pytest.approx(3)
    assert 4 < estimate.smoothed_ms < 20
    assert estimate.samples == 5


# -- configs and messages ------------------------------------------------------------


@pytest.mark.parametrize("config", [LAN, WAN])
def test_presets_hold_together(config):
    # An unanswered probe gets around a lost datagram, a relay has time to answer, and a refutation time to come.
    assert config.probe_window_s / config.probe_retry_s >= 4
    assert config.probe_timeout_s < (1 - config.nack_share) * 10 * config.probe_window_s
    assert config.retransmits(10) == 8
    assert config.retransmits(100) == 12


def test_senseless_numbers_are_refused():
    with pytest.raises(AssertionError):
        MembershipConfig(probe_timeout_s=2.0)


SAMPLES = [
    Probe(7, 1, MemberUpdate("a", 1, 0, ALIVE, HERE), 3, [news("b")]),
    ProbeAck(7, 2, 3, [news("b")]),
    ProbeRequest(7, "c", 1, 700),
    ProbeNack(7),
    MemberNews([news("b", 1, LEFT)]),
    MemberSync([MemberUpdate("a", 1, 0, ALIVE, HERE), news("b")], wants_reply=True),
]


def test_every_message_has_a_sample():
    assert {type(message) for message in SAMPLES} == set(MEMBERSHIP_MESSAGES)


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_messages_survive_the_wire(message):
    assert through_the_wire(message) == message


@pytest.mark.parametrize(
    ("message_type", "fields"),
    [
        (Probe, {"id": -1, "generation": 1, "origin": ["a", 1, 0, 0, ["h", 1, 0, 0], []]}),
        (Probe, {"id": 1, "generation": 1, "origin": ["A b", 1, 0, 0, ["h", 1, 0, 0], []]}),
        (Probe, {"id": 1, "generation": 1, "origin": ["a", 1, 0, 0, None, []]}),  # alive, but nowhere
        (Probe, {"id": 1, "generation": 1, "origin": ["a", 1, 0, 9, ["h", 1, 0, 0], []]}),
        (ProbeAck, {"id": 1, "incarnation": 1 << 32}),
        (ProbeRequest, {"id": 1, "target": "a", "generation": 1, "budget_ms": 0}),
        (MemberNews, {"updates": []}),
        (MemberNews, {"updates": [["a", 1, 0, 1, None, []]] * 65}),
        (MemberNews, {"updates": [["a", 1, 0, 1, None, ["b"] * 9]]}),
        (MemberSync, {"members": [["a", 1, 0, 1, None, []]] * 257}),
    ],
)
def test_hostile_messages_fail_in_validation(message_type, fields):
    fields = {"t": message_type.__struct_config__.tag, **fields}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields, message_type)


@given(updates)
def test_sizes_are_never_underestimated(update):
    packed = msgpack.packb(msgspec.to_builtins(update))
    assert len(packed) <= update_bytes(update)
