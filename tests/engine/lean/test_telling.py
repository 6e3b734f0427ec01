"""When clients hear of their tokens: at once, or later but in order."""

from __future__ import annotations

import pytest

from meshmoe.engine.later import Later
from meshmoe.engine.lean.member import Member
from meshmoe.engine.lean.telling import TELL_LATER_S, Telling
from meshmoe.engine.request import FinishEvent, GenerationRequest, GenerationStats, SamplingParams
from meshmoe.engine.sampling import Choice
from meshmoe.engine.writing import Writer
from tests.engine.support import edge


class Stream:
    def __init__(self):
        self.counted, self.events = 0, []

    def count(self, events):
        self.counted += events

    def put(self, event):
        self.events.append(event)


class Compute:
    def post(self, fn, *args):
        fn(*args)


class Sequence:
    length, long = 0, False


class Generation:
    def __init__(self):
        self.stream, self.model, self.context_tokens = Stream(), edge()[1], 0


def member(tokens_max=8, **sampling):
    made = object.__new__(Member)
    made.generation, made.sequence, made.failure = Generation(), Sequence(), None
    request = GenerationRequest(prompt_ids=(1, 2), sampling=SamplingParams(ignore_eos=True, **sampling))
    made.writer = Writer(made.generation.model, request, tokens_max, None, GenerationStats(), 0.0)
    return made


def choices(*tokens):
    return [Choice(token, None, ()) for token in tokens]


def told(one):
    return [getattr(event, "token_id", "end") for event in one.generation.stream.events]


def test_short_steps_that_wait_are_told_later():
    later, one = Later(), member()
    telling = Telling(Compute(), later)
    telling.wrote([(one, choices(50, 51))], TELL_LATER_S / 2, 0.001)
    assert one.writer.ids[2:] == [50, 51], "the next step reads them"
    assert (one.generation.stream.counted, told(one)) == (2, [])
    later.do_one()
    assert told(one) == [50, 51]


@pytest.mark.parametrize(("step_s", "waited_s"), [(TELL_LATER_S * 2, 0.001), (TELL_LATER_S / 2, 0.0)])
def test_long_steps_and_those_without_a_wait_are_told_at_once(step_s, waited_s):
    later, one = Later(), member()
    Telling(Compute(), later).wrote([(one, choices(50))], step_s, waited_s)
    assert told(one) == [50]
    assert not later


def test_the_end_is_told_at_once_behind_all_before():
    later, one, other = Later(), member(tokens_max=3), member()
    telling = Telling(Compute(), later)
    telling.wrote([(one, choices(50)), (other, choices(60))], 0.001, 0.001)
    telling.wrote([(one, choices(51, 52, 53)), (other, choices(61))], 0.001, 0.001)
    assert told(one) == [50, 51, 52, "end"]
    assert told(other) == [60, 61]
    assert one.generation.stream.counted == 4
    ends = [event for event in one.generation.stream.events if isinstance(event, FinishEvent)]
    assert [end.reason for end in ends] == ["length"]


def test_what_may_end_at_a_string_is_told_at_once():
    later, one = Later(), member(stop=("\n",))
    newline = next(t for t in range(300) if edge()[1].tokenizer.decode([t]) == "\n")
    Telling(Compute(), later).wrote([(one, choices(50, newline, 51))], 0.001, 0.001)
    assert told(one) == [50, newline, "end"]
    assert one.writer.ids[2:] == [50, newline]


def test_a_form_that_is_complete_ends_with_the_last_token_of_a_pass(monkeypatch):
    """The sampler has chosen all of a pass before the first is written."""
    one = member()
    monkeypatch.setattr(type(one.writer.sampler), "complete", True)
    Telling(Compute(), Later()).wrote([(one, choices(50, 51, 52))], 0.001, 0.001)
    assert told(one) == [50, 51, 52, "end"]
