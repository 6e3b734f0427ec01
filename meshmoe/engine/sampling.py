"""The next token from a row of logits.

All arithmetic is on float32 logits (float64 for the final draw). The same logits, the same seed and the same place in
the text give the same token, whatever else the node is doing and whatever was drawn before.

The order is the usual one: the tokens that the prescribed form allows, bias, repetition penalty, frequency and presence
penalty, temperature, top-k, top-p, min-p; each sees what the former left.
Log-probabilities are of the model's own distribution, before all that.

The draw is a race. Every token of the vocabulary gets an exponential delay, made of nothing but seed and place. Divided
by its probability, the shortest wins, and wins with exactly that probability (the Gumbel-max trick, Gumbel 1954, in its
exponential form). Two distributions that run the same race, a draft's and the model's, agree as often as they are
alike: at least with probability (1 - d) / (1 + d) at total variation distance d. That is how drafts are checked here
(Daliri, Musco and Suresh 2024, "Coupling without Communication and Drafter-Invariant Speculative Decoding"): the
model's own winner is the token, always, and a draft only decides how many of them one pass can tell.
docs/decisions/local-drafts.md says why not the rejection rule.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meshmoe.core.errors import MeshmoeError, RequestError
from meshmoe.engine.request import LOGIT_BIAS_MAX, STOP_STRINGS_MAX, SamplingParams

if TYPE_CHECKING:
    from meshmoe.engine.grammar import Constraint

LOGPROBS_MAX = 20
"""Most tokens reported beside a chosen one, as in OpenAI's interface."""

_UNIFORM_MIN = 2.0**-54
"""In place of the 0 that a uniform number can be: a token without probability must not win by 0 / 0."""

_NUCLEUS_GUESS = 256
"""Tokens looked at first for top-p; sorting a whole vocabulary of 150,000 takes 10 ms, and is hardly ever needed."""


class Choice(NamedTuple):
    """A chosen token.

    Attributes:
        token_id: Its id.
        logprob: Natural logarithm of its probability; None unless asked for.
        top: The likeliest tokens with theirs, likeliest first; empty unless asked for.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Chooses one request's tokens.

    Args:
        params: How.
        prompt_ids: For the repetition penalty.
        constraint: Says which tokens may come next; None for all.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Iterable[int], constraint: Constraint | None = None) -> None:
        self._params = params
        self._constraint = constraint
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        self._key = seed & (1 << 64) - 1
        self._seen: dict[int, None] = dict.fromkeys(prompt_ids) if params.repetition_penalty != 1.0 else {}
        self._counted = params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        self._counts: Counter[int] = Counter()
        """How often each token was chosen, where penalties ask for it."""
        self._bias = _indexed(params.logit_bias)
        self._place = 0
        """Tokens chosen so far."""
        self._plain = (
            self.greedy
            and constraint is None
            and params.logprobs is None
            and params.repetition_penalty == 1.0
            and not self._counted
            and self._bias is None
        )
        """Whether the highest logit is all there is to it."""

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self._params.temperature == 0

    @property
    def complete(self) -> bool:
        """Whether the prescribed form allows nothing more."""
        return self._constraint is not None and self._constraint.complete

    def take(self, best: int) -> Choice | None:
        """Choose the next token, knowing the place of the highest logit; None if that is not enough, or is -1."""
        if not self._plain or best < 0:
            return None
        self._place += 1
        return Choice(best, None, ())

    def choose(self, logits: Tensor) -> Choice:
        """Choose the next token.

        Args:
            logits: ``[V]``, any floating dtype; not changed.

        Raises:
            MeshmoeError: The logits are not numbers, which a damaged checkpoint can cause.
        """
        params = self._params
        logits = logits.to(torch.float32)
        token_id = self._winner(logits if self._constraint is None else self._constraint.allow(logits), ())
        self._place += 1
        if self._constraint is not None:
            self._constraint.accept(token_id)
        if params.repetition_penalty != 1.0:
            self._seen[token_id] = None
        if self._counted:
            self._counts[token_id] += 1
        if params.logprobs is None:
            return Choice(token_id, None, ())
        logprobs = torch.log_softmax(logits, dim=0)
        top = torch.topk(logprobs, min(params.logprobs, len(logprobs)))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return Choice(token_id, float(logprobs[token_id]), tuple(sorted(pairs, key=lambda pair: (-pair[1], pair[0]))))

    def guesses(self, logits: Tensor, ahead: Sequence[int], count: int) -> list[int]:
        """The token that `choose` would take for these logits once the tokens ``ahead`` were written, then those that
        it would if the ones before were not there. Changes nothing.

        It knows of no prescribed form: a guess that the form does not allow is just a wrong guess.

        Args:
            logits: ``[V]``, of a draft; not changed.
            ahead: Tokens drafted since the last chosen one.
            count: How many, at most; the filters may leave fewer.
        """
        return self._finishers(logits.to(torch.float32), ahead, count)

    def _winner(self, logits: Tensor, ahead: Sequence[int]) -> int:
        return self._finishers(logits, ahead, 1)[0]

    def _finishers(self, logits: Tensor, ahead: Sequence[int], count: int) -> list[int]:
        params = self._params
        if self._bias is not None:
            logits = logits.index_add(0, *self._bias)
        seen = list(self._seen | dict.fromkeys(ahead)) if params.repetition_penalty != 1.0 else []
        scores = penalised(logits, seen, params.repetition_penalty)
        if self._counted:
            scores = less_of_the_same(scores, self._counts + Counter(ahead), params)
        values = scores.numpy()
        if params.temperature == 0:
            return _checked(_highest(values, count), values)
        ids, probs = distribution(scores, params)
        delays = self._delays(self._place + len(ahead), len(scores))[ids.numpy()]
        return _checked([int(ids[place]) for place in _highest(probs.numpy() / delays, count)], values)

    def _delays(self, place: int, vocabulary: int) -> NDArray[np.float64]:
        """Exponential delays of the race at a place, ``[V]``, above 0; the same in every race there."""
        uniform = np.random.Generator(np.random.Philox(key=self._key, counter=place << 64)).random(vocabulary)
        return -np.log1p(-np.maximum(uniform, _UNIFORM_MIN))


def _checked(found: list[int], values: NDArray[np.floating[Any]]) -> list[int]:
    """The tokens found, if the first one's score is a number."""
    if not math.isfinite(values[found[0]]):
        raise MeshmoeError("the model's logits are not numbers; verify the checkpoint, it may be damaged")
    return found


def _highest(values: NDArray[np.floating[Any]], count: int) -> list[int]:
    """Places of the highest values, the highest first; of equal ones the first."""
    found = [int(values.argmax())]  # a third of the time that torch takes for a vocabulary of 4,096
    count = min(count, len(values))
    rest = values.copy() if count > 1 else values
    while len(found) < count:
        rest[found[-1]] = -np.inf
        best = int(rest.argmax())  # again and again: a partition takes longer than three of these
        if rest[best] == -np.inf:
            return found + [at for at in range(count) if at not in found][: count - len(found)]
        found.append(best)
    return found


def penalised(logits: Tensor, seen: list[int], penalty: float) -> Tensor:
    """Divide the positive and multiply the negative logits of ``seen`` tokens by ``penalty``.

    Args:
        logits: ``[V]``; not changed.
        seen: Distinct token ids.
        penalty: 1 changes nothing.
    """
    if penalty == 1.0 or not seen:
        return logits
    ids = torch.tensor(seen)
    values = logits[ids]
    return logits.index_copy(0, ids, torch.where(values < 0, values * penalty, values / penalty))


def less_of_the_same(scores: Tensor, counts: Mapping[int, int], params: SamplingParams) -> Tensor:
    """Subtract what frequency and presence penalty ask for, as OpenAI's interface defines them.

    Args:
        scores: ``[V]`` float32; not changed.
        counts: How often each token that has been written was written.
        params: With the penalties.
    """
    costs = [(token, -(n * params.frequency_penalty + params.presence_penalty)) for token, n in counts.items()]
    indexed = _indexed(costs)
    return scores if indexed is None else scores.index_add(0, *indexed)


def _indexed(amounts: Sequence[tuple[int, float]]) -> tuple[Tensor, Tensor] | None:
    """Token ids, and float32 amounts to be added to their logits; None if there are none."""
    if not amounts:
        return None
    ids, values = zip(*amounts, strict=True)
    return torch.tensor(ids), torch.tensor(values, dtype=torch.float32)


def distribution(scores: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """What is left to draw from after temperature and the filters.

    Args:
        scores: ``[V]`` float32, after the penalty.
        params: With a temperature above 0.

    Returns:
        Ids of the tokens left, ``[n]`` int64, and their probabilities, ``[n]`` float64, which sum to 1.
    """
    # Relative to the best, so that a tiny temperature cannot overflow.
    scores = (scores - scores.max()) / params.temperature
    ids = torch.arange(len(scores))
    if 0 < params.top_k < len(scores):
        threshold = torch.topk(scores, params.top_k).values[-1]
        ids = torch.nonzero(scores >= threshold).squeeze(1)
    if params.top_p < 1.0:
        ids = ids[_nucleus(torch.softmax(scores[ids], dim=0), params.top_p)]
    if params.min_p > 0.0:
        probs = torch.softmax(scores[ids], dim=0)
        ids = ids[probs >= params.min_p * probs.max()]
    return ids, torch.softmax(scores[ids].to(torch.float64), dim=0)


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Positions of the fewest likeliest tokens that together have ``top_p``, likeliest first."""
    for n in (min(_NUCLEUS_GUESS, len(probs)), len(probs)):
        best = torch.topk(probs, n)
        reached = best.values.to(torch.float64).cumsum(0)
        if float(reached[-1]) >= top_p:
            break
    keep = int(torch.searchsorted(reached, top_p)) + 1
    return best.indices[:keep]


def check_params(params: SamplingParams, vocabulary: int) -> None:
    """Check that sampling parameters make sense.

    Args:
        params: What was asked for.
        vocabulary: Tokens that the model knows.

    Raises:
        RequestError: It names the parameter and its bounds.
    """
    checks = {
        "max_tokens": (params.max_tokens is None or params.max_tokens >= 1, "at least 1"),
        "temperature": (0 <= params.temperature <= 100, "between 0 and 100"),
        "top_k": (params.top_k >= 0, "at least 0"),
        "top_p": (0 < params.top_p <= 1, "above 0 and at most 1"),
        "min_p": (0 <= params.min_p <= 1, "between 0 and 1"),
        "repetition_penalty": (0.01 <= params.repetition_penalty <= 100, "between 0.01 and 100"),
        "frequency_penalty": (-2 <= params.frequency_penalty <= 2, "between -2 and 2"),
        "presence_penalty": (-2 <= params.presence_penalty <= 2, "between -2 and 2"),
        "logit_bias": (
            len(dict(params.logit_bias)) == len(params.logit_bias) <= LOGIT_BIAS_MAX
            and all(0 <= token < vocabulary and -100 <= bias <= 100 for token, bias in params.logit_bias),
            f"at most {LOGIT_BIAS_MAX} token ids below {vocabulary}, each with a bias between -100 and 100",
        ),
        "stop": (
            len(params.stop) <= STOP_STRINGS_MAX and all(params.stop),
            f"at most {STOP_STRINGS_MAX} strings, none of them empty",
        ),
        "logprobs": (
            params.logprobs is None or 0 <= params.logprobs <= LOGPROBS_MAX,
            f"between 0 and {LOGPROBS_MAX}",
        ),
    }
    for name, (good, bounds) in checks.items():
        if not good:
            raise RequestError(f"{name} is {getattr(params, name)!r:.100}; it must be {bounds}", param=name)
