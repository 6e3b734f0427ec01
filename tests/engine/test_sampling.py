"""Our filters against transformers' own, and the draw against probability."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from meshmoe.core.errors import MeshmoeError, RequestError
from meshmoe.engine.request import SamplingParams
from meshmoe.engine.sampling import Sampler, check_params, distribution, less_of_the_same, penalised

# Values without ties and not so close together that rounding could order them differently.
rows = st.lists(st.integers(-4000, 4000), min_size=2, max_size=600, unique=True).map(
    lambda values: torch.tensor(values, dtype=torch.float32) / 256
)
examples = settings(max_examples=150, deadline=None)


@examples
@given(
    logits=rows,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.9]),
    top_k=st.sampled_from([0, 1, 2, 5, 50, 1000]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    penalty=st.sampled_from([1.0, 0.8, 1.3]),
    data=st.data(),
)
def test_what_is_left_is_what_transformers_leaves(logits, temperature, top_k, top_p, min_p, penalty, data):
    seen = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=20))
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    scores = penalised(logits, list(dict.fromkeys(seen)), penalty)
    processors = LogitsProcessorList()
    if penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty))
    processors.append(TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        processors.append(TopPLogitsWarper(top_p))
    if min_p:
        processors.append(MinPLogitsWarper(min_p))
    expected = torch.softmax(processors(torch.tensor([seen], dtype=torch.int64), logits[None].clone())[0].double(), 0)
    ids, probs = distribution(scores, params)
    found = torch.zeros(len(logits), dtype=torch.float64)
    found[ids] = probs
    # A token exactly at a filter's edge may fall on either side by rounding: then it weighs next to nothing,
    # or the others share what it weighs. Sets must agree but for one token, and the rest of the distribution too.
    differing = (found > 0) != (expected > 0)
    assert int(differing.sum()) <= 1
    if not differing.any():
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@examples
@given(logits=rows, ties=st.lists(st.integers(0, 599), min_size=1, max_size=5))
def test_greedy_takes_the_lowest_id_of_equals(logits, ties):
    for tie in ties:
        logits[tie % len(logits)] = 100.0
    choice = Sampler(SamplingParams(), ()).choose(logits)
    assert choice.token_id == min(tie % len(logits) for tie in ties) == int(logits.argmax())
    assert choice.logprob is None


@examples
@given(logits=rows, n=st.integers(0, 20), temperature=st.sampled_from([0.0, 0.8]))
def test_logprobs_are_of_the_unmodified_distribution(logits, n, temperature):
    params = SamplingParams(logprobs=n, temperature=temperature, top_k=3, repetition_penalty=1.5, seed=1)
    choice = Sampler(params, (0, 1)).choose(logits)
    expected = logits.double().log_softmax(0)
    assert choice.logprob == pytest.approx(float(expected[choice.token_id]), abs=1e-4)
    order = sorted(range(len(logits)), key=lambda i: (-float(logits[i]), i))[:n]
    assert [token for token, _ in choice.top] == order
    assert [lp for _, lp in choice.top] == pytest.approx([float(expected[i]) for i in order], abs=1e-4)


def test_a_seed_repeats_and_seeds_differ():
    logits = torch.randn(500, generator=torch.Generator().manual_seed(0))

    def draw(seed):
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), ())
        return [sampler.choose(logits).token_id for _ in range(30)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)
    assert draw(-1) == draw(-1)


def test_frequencies_follow_probabilities():
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    sampler = Sampler(SamplingParams(temperature=1.0, seed=3), ())
    n = 4000
    counts = np.bincount([sampler.choose(probs.log()).token_id for _ in range(n)], minlength=4)
    for count, p in zip(counts, probs.tolist(), strict=True):
        assert abs(count - n * p) < 4 * math.sqrt(n * p * (1 - p))


def test_the_race_draws_by_probability():
    """Chi-square over 64 tokens and 20,000 places; a race that misreads its delays must fail it."""
    probs = torch.softmax(2 * torch.randn(64, generator=torch.Generator().manual_seed(5)), 0)
    logits, n = probs.log(), 20_000
    sampler = Sampler(SamplingParams(temperature=1.0, seed=11), ())
    counts = np.bincount([sampler.choose(logits).token_id for _ in range(n)], minlength=64)
    assert p_value(counts, probs) > 1e-3
    loaded = np.bincount(
        [np.argmin(sampler._delays(place, 64) / probs.numpy() ** 1.1) for place in range(n)], minlength=64
    )
    assert p_value(loaded, probs) < 1e-6


def p_value(counts, probs):
    """That counts this far from ``probs`` come by chance; rare tokens taken together."""
    expected = probs.double().numpy() / float(probs.double().sum()) * counts.sum()
    rare = expected < 10
    observed = [*counts[~rare], counts[rare].sum()]
    return scipy.stats.chisquare(observed, [*expected[~rare], expected[rare].sum()]).pvalue


@examples
@given(logits=rows, ahead=st.lists(st.integers(0, 1), max_size=4), temperature=st.sampled_from([0.0, 0.8]))
def test_a_guess_is_the_choice_to_come(logits, ahead, temperature):
    params = SamplingParams(
        temperature=temperature,
        seed=4,
        repetition_penalty=1.3,
        frequency_penalty=0.7,
        presence_penalty=-0.4,
        logit_bias=((1, 0.5),),
    )
    sampler, later = Sampler(params, (0,)), Sampler(params, (0,))
    written = []
    for token in ahead:
        forced = torch.full_like(logits, -1e9)
        forced[token] = 1e9
        written.append(later.choose(forced).token_id)
    assert written == ahead
    guess = sampler.guesses(logits, ahead, 1)[0]
    assert guess == sampler.guesses(logits, ahead, 3)[0], "guessing changes nothing"
    assert later.choose(logits).token_id == guess


def test_alike_distributions_agree_as_often_as_promised():
    generator = torch.Generator().manual_seed(8)
    logits = 1.5 * torch.randn(200, generator=generator)
    near = logits + 0.5 * torch.randn(200, generator=generator)
    apart = 0.5 * float((torch.softmax(logits, 0) - torch.softmax(near, 0)).abs().sum())
    agreed, n = 0, 3000
    sampler = Sampler(SamplingParams(temperature=1.0, seed=2), ())
    for _ in range(n):
        agreed += sampler.guesses(near, (), 1)[0] == sampler.choose(logits).token_id
    assert agreed / n > (1 - apart) / (1 + apart) - 0.03
    assert agreed / n < 1 - apart + 0.03, "no coupling can agree more often"


def test_the_penalty_remembers_what_was_written():
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), (0,))
    logits = torch.tensor([4.0, 3.0, 2.5, -1.0])
    assert [sampler.choose(logits).token_id for _ in range(3)] == [1, 2, 0]


def test_frequency_and_presence_penalty_by_their_definition():
    """OpenAI: mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, with c of the text written so far."""
    params = SamplingParams(frequency_penalty=0.75, presence_penalty=0.5)
    scores = less_of_the_same(torch.tensor([1.0, 2.0, 3.0]), {0: 3, 2: 1}, params)
    assert scores.tolist() == [1.0 - 3 * 0.75 - 0.5, 2.0, 3.0 - 0.75 - 0.5]
    logits = torch.tensor([4.0, 3.9, 3.0, -1.0])
    # 4.0 | 3.9 | 2.75 3.0 | ... the prompt's tokens are not counted.
    sampler = Sampler(params, (0, 0, 0, 1))
    assert [sampler.choose(logits).token_id for _ in range(4)] == [0, 1, 2, 0]
    # Without any frequency penalty the third is 3.5 against 3.4 and 3.0, and stays.
    sampler = Sampler(SamplingParams(presence_penalty=0.5), (0,))
    assert [sampler.choose(logits).token_id for _ in range(5)] == [0, 1, 0, 0, 0]


def test_bias_forbids_and_forces_but_is_not_in_the_log_probabilities():
    logits = torch.tensor([4.0, 3.0, 2.0])
    assert Sampler(SamplingParams(logit_bias=((0, -100.0),)), ()).choose(logits).token_id == 1
    choice = Sampler(SamplingParams(logit_bias=((2, 100.0),), temperature=1.0, seed=1, logprobs=0), ()).choose(logits)
    assert choice.token_id == 2
    assert choice.logprob == float(torch.log_softmax(logits, 0)[2])


@pytest.mark.parametrize(
    "bad",
    [
        {"logit_bias": ((300, 1.0),)},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": ((1, 101.0),)},
        {"logit_bias": ((1, float("nan")),)},
        {"logit_bias": ((1, 1.0), (1, 2.0))},
        {"frequency_penalty": 2.5},
        {"presence_penalty": float("nan")},
    ],
)
def test_bad_penalties_are_named(bad):
    (name,) = bad
    with pytest.raises(RequestError, match=name):
        check_params(SamplingParams(**bad), 300)


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 50.0])
def test_extreme_temperatures(temperature):
    logits = torch.tensor([-30.0, 80.0, 79.0, float("-inf")])
    token = Sampler(SamplingParams(temperature=temperature, seed=1), ()).choose(logits).token_id
    assert token == 1 if temperature < 1 else token != 3


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_an_error(value, temperature):
    with pytest.raises(MeshmoeError, match="not numbers"):
        Sampler(SamplingParams(temperature=temperature), ()).choose(torch.full((8,), value))


def test_a_large_vocabulary_takes_the_short_way_and_the_long_way():
    flat, peaked = torch.zeros(50_000), torch.zeros(50_000)
    flat += torch.arange(50_000) * -1e-6
    peaked[123] = 30.0
    params = SamplingParams(temperature=1.0, top_p=0.9)
    assert len(distribution(flat, params)[0]) == pytest.approx(45_000, rel=0.02)
    assert distribution(peaked, params)[0].tolist() == [123]


@examples
@given(
    values=st.lists(st.sampled_from([-math.inf, -2.0, 0.0, 0.5, 3.0]), min_size=1, max_size=9),
    count=st.integers(1, 4),
)
def test_guesses_are_the_highest_and_of_equal_ones_the_first(values, count):
    found = Sampler(SamplingParams(), ()).guesses(torch.tensor([9.0, *values]), (), count)
    ranked = sorted(range(len(values) + 1), key=lambda at: (-[9.0, *values][at], at))
    assert found == ranked[:count]
