"""Drafts change no text: greedy and sampled, every drafter and length, one request or many, after errors too."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from meshmoe.core.errors import ConfigError, ExpertUnavailableError
from meshmoe.core.ids import ExpertId
from meshmoe.engine.counts import ActivationCounts
from meshmoe.engine.drafts.asked import LOOKUPS, PRIORS, Asked, RequestDrafts
from meshmoe.engine.drafts.chooser import LengthChooser
from meshmoe.engine.drafts.confidence import Bar
from meshmoe.engine.drafts.drafting import Drafting
from meshmoe.engine.drafts.lookup import PromptLookup
from meshmoe.engine.drafts.mode import AUTO, OFF, DraftMode, parse_draft_mode
from meshmoe.engine.drafts.tree import PENDING, DraftTree
from meshmoe.engine.kernels.choice import compute
from meshmoe.engine.kernels.limit import SliceLimit
from meshmoe.engine.lean.batch import LeanEngine
from meshmoe.engine.lean.blocks import NoBlocksError
from meshmoe.engine.lean.row import Row
from meshmoe.engine.request import GenerationStats, SamplingParams
from meshmoe.engine.sampling import Sampler
from tests.engine.support import edge, edge_pool, subset

PROMPTS = [
    "The server process is started by the administrator. When a client connects, it",
    "def read_lines(path):\n    with open(path) as file:\n        for line in",
    "12 + 7 = 19\n25 + 4 = 29\n31 + 8 =",
]
TOKENS = 24


class Mesh:
    """Has all experts and answers at once; may be told to fail."""

    def __init__(self):
        self.calls = 0
        self.fails_at = None

    def compute(self, call):
        self.calls += call.decode
        if call.decode and self.calls == self.fails_at:
            raise ExpertUnavailableError("the test said so")
        model, pool = edge(torch.bfloat16)[1], edge_pool(torch.bfloat16)
        module = model.layers[call.layer].module
        rows = {e: call.hidden[torch.tensor(numbers)] for e, numbers in call.rows.items()}
        return {e: compute(module, pool.get(ExpertId(call.layer, e)), x) for e, x in rows.items()}


class Answered:
    stalled_s = 0.0
    ended = True

    def __init__(self, outputs):
        self._outputs = outputs

    def wait(self):
        return self._outputs

    def abandon(self):
        pass


class Job:
    """Calls the mesh without a thread or a loop."""

    limit = SliceLimit()

    def checkpoint(self):
        pass

    def ask(self, remote, call):
        return Answered(remote.compute(call))


class Speaker:
    """One request, driven by hand as the scheduler would."""

    def __init__(self, lean, batch, drafting, mode, prompt, params):
        _, model = edge(torch.bfloat16)
        self.ids = model.tokenizer(prompt).input_ids
        self.sequence, self.stats = lean.sequence(), GenerationStats()
        self.sampler = Sampler(params, self.ids)
        rows = [Row(self.sequence, t, self.stats, decode=False, logits=False) for t in self.ids]
        rows[-1] = rows[-1]._replace(logits=True)
        self.written = [self.sampler.choose(batch.forward(rows)[0])]
        self.drafts, self.mode = RequestDrafts(drafting.chances[self.sampler.greedy]), mode

    def asked(self):
        room = TOKENS - len(self.written) - 1
        text = [*self.ids, *(choice.token_id for choice in self.written)]
        drafts = self.drafts
        return Asked(self.sequence, text, self.sampler, self.stats, drafts, max(0, room), mode=self.mode)


def node(share=0.4, seed=1, kv_bytes=64 << 20):
    """A node that holds a share of the bundled model's experts, and the mesh around it."""
    _, model = edge(torch.bfloat16)
    rng = random.Random(seed)
    pool = subset(edge_pool(torch.bfloat16), [e for e in model.experts if rng.random() < share])
    sizes = [layer.n_experts for layer in model.layers]
    mesh = Mesh()
    lean = LeanEngine(model.lean, pool, sizes, mesh, ActivationCounts.zeros(sizes), kv_bytes)
    return lean, lean.batch(Job()), mesh


def write(mode, params, prompts=PROMPTS, together=False, share=0.4, fails_at=None, modes=()):
    """The texts that the prompts are continued with, and their counters; ``modes`` are those of the requests."""
    lean, batch, mesh = node(share)
    mesh.fails_at = fails_at
    drafting, done = Drafting(mode), []
    groups = [prompts] if together else [[prompt] for prompt in prompts]
    for group in groups:
        ways = modes or [mode] * len(group)
        going = [Speaker(lean, batch, drafting, way, text, params) for way, text in zip(ways, group, strict=True)]
        done += going
        while going:
            asked = [speaker.asked() for speaker in going]
            lengths = [one.sequence.length for one in asked]
            try:
                found = drafting.advance(batch, asked)
            except ExpertUnavailableError:
                assert [one.sequence.length for one in asked] == lengths
                continue
            for speaker, choices in zip(going, found, strict=True):
                speaker.written += choices
                assert speaker.sequence.length == len(speaker.ids) + len(speaker.written) - 1
            going = [speaker for speaker in going if len(speaker.written) < TOKENS]
    for speaker in done:
        assert len(speaker.written) == TOKENS
        speaker.sequence.close()
    assert lean.blocks.used_bytes == 0
    return [speaker.written for speaker in done], [speaker.stats for speaker in done]


GREEDY = SamplingParams(logprobs=2)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, seed=5, repetition_penalty=1.1, logprobs=2)
MODES = [DraftMode("fixed", 1), DraftMode("fixed", 4), DraftMode("fixed", 9), DraftMode("lookup", 8), AUTO]


@pytest.fixture(scope="module", params=[GREEDY, SAMPLED], ids=["greedy", "sampled"])
def plain(request):
    return request.param, *write(OFF, request.param)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("together", [False, True])
def test_the_text_is_the_one_without_drafts(plain, mode, together):
    params, texts, before = plain
    found, stats = write(mode, params, together=together)
    assert found == texts, "tokens and their log-probabilities"
    if mode.kind == "lookup":
        assert 0 < sum(s.looked_up_depth for s in stats) == sum(s.drafted_depth for s in stats)
    if mode.kind == "fixed":
        assert sum(s.looked_up_depth for s in stats) == 0
        assert sum(s.drafted_tokens for s in stats) > 0
        assert sum(s.accepted_tokens for s in stats) > 0
        assert sum(s.decode_rounds for s in stats) < sum(s.decode_rounds for s in before)


def test_requests_of_one_batch_may_draft_in_different_ways(plain):
    params, texts, _ = plain
    found, stats = write(AUTO, params, together=True, modes=[OFF, DraftMode("fixed", 3), AUTO])
    assert found == texts
    assert stats[0].drafted_tokens == 0
    alone = write(DraftMode("fixed", 3), params, PROMPTS[1:2])[1][0]
    assert 0 < stats[1].drafted_tokens == alone.drafted_tokens


def test_drafts_that_were_wrong_are_no_demand():
    def routed(mode):
        lean, batch, _ = node()
        speaker, drafting = Speaker(lean, batch, Drafting(mode), mode, PROMPTS[0], GREEDY), Drafting(mode)
        while len(speaker.written) < TOKENS:
            speaker.written += drafting.advance(batch, [speaker.asked()])[0]
        lean.later.catch_up()
        prompt, *steps = lean.counts.log.take()
        return speaker.stats, prompt, np.concatenate([step.sets for step in steps if step.decode])

    _, prompt, plain = routed(OFF)
    stats, same, drafted = routed(DraftMode("fixed", 4))
    assert len(plain) == TOKENS - 1 and len(prompt.sets) == len(same.sets) and not prompt.decode
    assert stats.drafted_depth == stats.drafted_tokens > stats.accepted_tokens > 0
    assert (drafted == plain).all(), "where tokens of the text were routed, each once and in order"


def test_the_text_does_not_depend_on_who_drafts(plain):
    params, texts, _ = plain
    for share in (0.1, 0.8):
        assert write(DraftMode("fixed", 4), params, share=share)[0] == texts


def test_a_failure_in_the_middle_of_a_pass_changes_nothing(plain):
    params, texts, _ = plain
    for fails_at in (3, 40):
        assert write(DraftMode("fixed", 4), params, fails_at=fails_at)[0] == texts


def test_more_experts_make_better_drafts():
    accepted = []
    for share in (0.1, 0.5, 0.9):
        _, stats = write(DraftMode("fixed", 4), GREEDY, share=share)
        accepted.append(sum(s.accepted_tokens for s in stats) / sum(s.drafted_tokens for s in stats))
    assert accepted[0] < accepted[1] < accepted[2]
    assert accepted[2] > 0.6


def test_a_planted_rule_that_takes_drafts_unseen_is_noticed(plain, monkeypatch):
    """The mutant accepts every second draft without asking the model."""
    params, texts, _ = plain

    def wrong(self, batch, one, growth, logits, begin):
        chosen, used, last = [one.sampler.choose(logits[begin])], [begin], PENDING
        for at, node in enumerate(growth.tree.nodes):
            if at % 2 == 0 and chosen[-1].token_id != node[-1]:
                break
            chosen.append(one.sampler.choose(logits[begin + at + 1]))
            used.append(begin + at + 1)
            last = node
        growth.tree.take(last)
        return chosen, used

    monkeypatch.setattr(Drafting, "_accept", wrong)
    assert write(DraftMode("fixed", 4), params)[0] != texts


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_bar_keeps_unsure_drafts_from_being_checked(plain, params, monkeypatch):
    """Wherever the bar is, the text is the same; the higher, the fewer are checked and the more of these are right."""
    monkeypatch.setattr(LengthChooser, "lengths", lambda self, prospects: [len(p.survival) for p in prospects])
    monkeypatch.setattr(PromptLookup, "draft", lambda self, count: ((), 0))  # the bar is for local drafts
    checked, right = [], []
    for worth in (0.0, 0.3, 0.8):
        monkeypatch.setattr(LengthChooser, "bar", lambda self, prospects, lengths, worth=worth: Bar(worth, worth))
        texts, stats = write(AUTO, params)
        if params is plain[0]:
            assert texts == plain[1]
        checked.append(sum(s.drafted_tokens for s in stats))
        right.append(sum(s.accepted_tokens for s in stats) / checked[-1])
    assert checked[0] > checked[1] > checked[2] > 0
    assert right[0] < right[1] < right[2]


class Forks:
    """Has every guess checked that is not quite hopeless, and counts branches and those that became the text."""

    def __init__(self, monkeypatch, worth=0.01):
        self.made = self.taken = 0
        monkeypatch.setattr(LengthChooser, "lengths", lambda self, prospects: [len(p.survival) for p in prospects])
        monkeypatch.setattr(LengthChooser, "bar", lambda self, prospects, lengths: Bar(worth, worth))
        take, add = DraftTree.take, DraftTree.add

        def counted_take(tree, node):
            self.taken += tree.sequence(node) is not tree._trunk
            take(tree, node)

        def counted_add(tree, node):
            add(tree, node)
            self.made += tree.sequence(node) is not tree.sequence(node[:-1])

        monkeypatch.setattr(DraftTree, "take", counted_take)
        monkeypatch.setattr(DraftTree, "add", counted_add)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("fails_at", [None, 3, 40])
def test_the_text_is_the_one_without_drafts_whatever_branch_is_right(plain, monkeypatch, together, fails_at):
    params, texts, _ = plain
    forks = Forks(monkeypatch)
    written, stats = write(AUTO, params, together=together, fails_at=fails_at)
    assert written == texts
    assert all(s.accepted_tokens <= s.drafted_depth < s.drafted_tokens for s in stats)
    assert forks.made > 30
    assert forks.taken > 3


def test_a_tree_has_more_right_than_its_first_choices(monkeypatch):
    passes = []
    for width in (1, 3):
        monkeypatch.setattr("meshmoe.engine.drafts.growing.WIDTH", width)
        with monkeypatch.context() as context:
            Forks(context, worth=0.03)
            _, stats = write(AUTO, GREEDY)
        passes.append(sum(TOKENS - 1 - s.accepted_tokens for s in stats))
    assert passes[1] < 0.95 * passes[0]


def test_what_stood_in_the_text_is_one_more_branch(monkeypatch):
    """Where the drafting model knows nothing, what was found is still checked beside its guesses."""
    prompt = ["one two three. one two three. one two three. one two"]
    monkeypatch.setattr(LengthChooser, "bar", lambda self, prospects, lengths: Bar(0.05, 0.05))
    monkeypatch.setattr("meshmoe.engine.drafts.drafting.promise", lambda prospect, *times: float(prospect.costs))
    monkeypatch.setattr(LengthChooser, "lengths", lambda self, prospects: [len(p.survival) for p in prospects])
    accepted = []
    for found in (True, False):
        with monkeypatch.context() as context:
            if not found:
                context.setattr(PromptLookup, "draft", lambda self, count: ((), 0))
            accepted.append(write(AUTO, GREEDY, prompt, share=0.1)[1][0].accepted_tokens)
    assert accepted[0] > accepted[1]


def test_what_stood_in_the_text_is_judged_without_being_used(monkeypatch):
    monkeypatch.setattr(LengthChooser, "lengths", lambda self, prospects: [0] * len(prospects))
    lean, batch, _ = node()
    drafting = Drafting(AUTO)
    speaker = Speaker(lean, batch, drafting, AUTO, "one two three. one two three. one two three. one two", GREEDY)
    while len(speaker.written) < TOKENS:
        speaker.written += drafting.advance(batch, [speaker.asked()])[0]
    assert speaker.stats.drafted_tokens == 0
    seen = sum(speaker.drafts.records[drafter].looked_at for drafter in LOOKUPS.values())
    assert seen > TOKENS / 4, "each pass told what became of what was found"
    assert any(drafting.chances[True][drafter][0] != PRIORS[drafter] for drafter in LOOKUPS.values())
    assert drafting.chances[True]["local"][0] == PRIORS["local"]
    assert drafting.chances[False]["lookup 2"][0] == PRIORS["lookup 2"], "texts that are drawn are another matter"


def test_what_a_pass_taught_is_learned_while_the_next_one_waits(monkeypatch):
    """And not before its first call is out."""
    lean, batch, mesh = node()
    drafting, left = Drafting(AUTO), []
    asked, wait, compute_away = [], Answered.wait, mesh.compute

    def ask(call):
        asked.append(len(lean.later._work))
        return compute_away(call)

    def waited(answered):
        left.append(len(lean.later._work))
        return wait(answered)

    monkeypatch.setattr(Answered, "wait", waited)
    monkeypatch.setattr(Answered, "ended", False)
    monkeypatch.setattr(mesh, "compute", ask)
    speaker = Speaker(lean, batch, drafting, AUTO, PROMPTS[0], GREEDY)
    speaker.written += drafting.advance(batch, [speaker.asked()])[0]
    assert lean.later, "learning and demand of the first pass"
    del asked[:], left[:]
    speaker.written += drafting.advance(batch, [speaker.asked()])[0]
    assert asked[0] > 0
    assert left[0] == 0


def test_drafts_give_way_where_the_cache_is_full():
    lean, batch, _ = node(kv_bytes=node()[0].blocks.block_bytes * 2)
    drafting = Drafting(DraftMode("fixed", 8))
    speaker = Speaker(lean, batch, drafting, drafting.mode, "a " * 30, GREEDY)
    with pytest.raises(NoBlocksError):
        while True:
            speaker.written += drafting.advance(batch, [speaker.asked()])[0]
            assert len(speaker.written) < 100
    assert speaker.sequence.length == 64, "up to the last token that there was room for"


def test_branches_give_way_where_the_cache_is_full(monkeypatch):
    """And give their blocks back."""
    forks = Forks(monkeypatch)
    lean, batch, _ = node(kv_bytes=node()[0].blocks.block_bytes * 3)
    drafting = Drafting(AUTO)
    speaker = Speaker(lean, batch, drafting, AUTO, "a " * 20, GREEDY)
    with pytest.raises(NoBlocksError):
        while True:
            speaker.written += drafting.advance(batch, [replace(speaker.asked(), room=8)])[0]
            assert len(speaker.written) < 100
    assert speaker.sequence.length == 96, "up to the last token that there was room for"
    assert forks.made > 0
    speaker.sequence.close()
    assert lean.blocks.used_bytes == 0


@pytest.mark.parametrize("text", ["", "17", "-1", "yes", "4.0", "9999999"])
def test_modes_that_make_no_sense(text):
    with pytest.raises(ConfigError, match=r"auto, off, lookup, or how many"):
        parse_draft_mode(text)


def test_modes():
    assert parse_draft_mode("auto") == AUTO
    assert parse_draft_mode("off") == parse_draft_mode("0") == OFF
    assert parse_draft_mode("4") == DraftMode("fixed", 4)
    assert parse_draft_mode("lookup").kind == "lookup"
