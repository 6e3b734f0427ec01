"""Pieces of text add up to the whole, and nothing is ever taken back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from meshmoe.engine.detokenize import Detokenizer, StopMatcher, decode_with
from tests.engine.support import EDGE_12M

EDGE = AutoTokenizer.from_pretrained(EDGE_12M)
examples = settings(max_examples=150, deadline=None)


def spaces_tokenizer():
    """Marks spaces as sentencepiece models do, and drops the first one in decoding."""
    words = [
        "<unk>",
        "</s>",
        "\N{LOWER ONE EIGHTH BLOCK}the",
        "\N{LOWER ONE EIGHTH BLOCK}cat",
        "s",
        "\N{LOWER ONE EIGHTH BLOCK}",
        "é",
    ]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


SPACES = spaces_tokenizer()


def pieces_of(tokenizer, ids):
    detokenizer = Detokenizer(tokenizer)
    return [detokenizer.push(token_id) for token_id in ids], detokenizer.finish()


def whole(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def check(tokenizer, ids):
    pieces, rest = pieces_of(tokenizer, ids)
    assert "".join(pieces) + rest == whole(tokenizer, ids)


# Single bytes make broken and split characters; they are the tokens from 1 on in this vocabulary.
@examples
@given(st.lists(st.one_of(st.integers(0, 4095), st.integers(1, 256)), max_size=120))
def test_any_tokens_add_up(ids):
    check(EDGE, ids)


@examples
@given(st.lists(st.sampled_from(range(1, 257)), min_size=1, max_size=4), st.integers(1, 80))
def test_endless_broken_bytes_add_up(ids, times):
    check(EDGE, ids * times)


@examples
@given(st.text(max_size=200))
def test_any_text_comes_back_whole(text):
    ids = EDGE(text).input_ids
    pieces, rest = pieces_of(EDGE, ids)
    assert "".join(pieces) + rest == whole(EDGE, ids)
    for so_far in range(len(pieces)):
        assert text.startswith("".join(pieces[:so_far])) or whole(EDGE, ids) != text


@examples
@given(st.lists(st.integers(1, 6), max_size=100))
def test_leading_spaces_survive(ids):
    check(SPACES, ids)


def test_characters_are_never_halved():
    ids = EDGE("naïve 😀 日本語").input_ids
    pieces, rest = pieces_of(EDGE, ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert rest == ""
    assert len([piece for piece in pieces if piece]) > 3


def test_a_plain_word_comes_at_once():
    ids = EDGE("The history of the world").input_ids
    pieces, rest = pieces_of(EDGE, ids)
    assert all(pieces)
    assert rest == ""


def test_a_plain_tokenizer_is_asked_itself_and_says_the_same():
    tokenizer = AutoTokenizer.from_pretrained(EDGE_12M)
    ids = [*range(3, 300), *tokenizer.all_special_ids, 5, 4]
    decode = decode_with(tokenizer)
    assert decode(ids) == whole(tokenizer, ids)

    class Overridden(type(tokenizer)):
        def _decode(self, *args, **kwargs):
            return "its own"

    tokenizer.__class__ = Overridden
    assert decode_with(tokenizer)(ids) == "its own"


def test_the_window_stays_small():
    detokenizer = Detokenizer(EDGE)
    for token_id in EDGE("The history of the world, which is long. " * 40).input_ids:
        detokenizer.push(token_id)
        assert len(detokenizer._window) <= 32


stops = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)


@examples
@given(st.lists(st.text("abcx", max_size=5), max_size=30), stops)
def test_stops_are_found_wherever_the_pieces_break(pieces, stops):
    matcher, out, stopped = StopMatcher(stops), "", False
    for piece in pieces:
        certain, stopped = matcher.push(piece)
        out += certain
        if stopped:
            break
    if not stopped:
        out += matcher.finish()
    text = "".join(pieces)
    ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    assert stopped == bool(ends)
    if not ends:
        assert out == text
    else:
        # Where two stops overlap, the one that is complete first decides; nothing of a stop is ever shown.
        assert text.startswith(out)
        assert any(text[len(out) :].startswith(stop) for stop in stops)
        assert not any(stop in out for stop in stops)


@pytest.mark.parametrize(
    ("stops", "text", "shown"), [((), "abc", "abc"), (("cd",), "abc", "ab"), (("cd", "bcx"), "abc", "a")]
)
def test_only_a_possible_beginning_is_held_back(stops, text, shown):
    assert StopMatcher(stops).push(text) == (shown, False)
