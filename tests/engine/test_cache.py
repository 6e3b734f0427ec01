"""Caches: growing in place changes nothing, and what is found out about a family's cache is true."""

from __future__ import annotations

import random

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from meshmoe.engine.cache import CacheTraits, GrowingLayer, cache_bytes, new_cache
from meshmoe.engine.model import load_moe_model
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.tiny import make_tiny_checkpoint
from tests.engine.support import edge


def test_growing_in_place_is_concatenation():
    rng = random.Random(0)
    stock, ours = DynamicLayer(), GrowingLayer()
    for _ in range(60):
        tokens = rng.choice([1, 1, 1, 5, 100])
        keys, values = torch.randn(1, 2, tokens, 8), torch.randn(1, 2, tokens, 12)
        for found, expected in zip(ours.update(keys, values), stock.update(keys, values), strict=True):
            assert torch.equal(found, expected)
        assert ours.get_seq_length() == stock.get_seq_length()
        assert ours.get_mask_sizes(3) == stock.get_mask_sizes(3)


@pytest.mark.parametrize(
    ("family", "stock", "chunks", "token_bytes"),
    [
        ("qwen3_moe", True, True, 3 * 2 * 2 * 16 * 4),  # layers, keys and values, heads, width, bytes
        ("gpt_oss", True, True, 3 * 2 * 2 * 16 * 4),
        ("deepseek_v3", True, True, None),
        ("jamba", True, False, None),
        ("lfm2_moe", True, False, None),
        ("qwen3_next", True, False, None),
        ("minimax", False, False, None),
    ],
)
def test_what_a_probe_finds(family, stock, chunks, token_bytes, tmp_path):
    make_tiny_checkpoint(family, tmp_path)
    traits = load_moe_model(Checkpoint.open(tmp_path)).cache
    assert (traits.stock, traits.chunks) == (stock, chunks)
    assert traits.token_bytes > 0
    assert token_bytes in (None, traits.token_bytes)
    assert (traits.fixed_bytes > 100) == (not chunks), "recurrent state does not grow"


def test_size_of_a_real_cache():
    model = edge()[1]
    cache = new_cache(model.config, model.cache)
    for layer in cache.layers:
        layer.update(torch.zeros(1, 4, 100, 32), torch.zeros(1, 4, 100, 32))
    estimate = model.cache.bytes_for(100)
    assert estimate == 8 * 2 * 4 * 32 * 4 * 100
    assert estimate <= cache_bytes(cache) <= estimate * 4, "room to grow is all that may be added"


def test_a_model_that_makes_its_own_cache_gets_none():
    assert new_cache(None, CacheTraits(False, False, 1, 1)) is None


@pytest.mark.parametrize("length", [1, 255, 256, 257, 1000])
def test_chunks_cover_the_prompt(length):
    cut = list(CacheTraits(True, True, 1, 1, switch_tokens=1000).prompt_chunks(length))
    assert [i for chunk in cut for i in range(chunk.start, chunk.stop)] == list(range(length))
    assert all(chunk.stop - chunk.start <= 256 for chunk in cut)
    assert list(CacheTraits(True, False, 1, 1).prompt_chunks(length)) == [slice(0, length)]
    assert list(CacheTraits(True, True, 1, 1, switch_tokens=0).prompt_chunks(length)) == [slice(0, length)]


def test_a_layer_written_in_place_is_one_that_was_fed():
    fed, written = GrowingLayer(), GrowingLayer()
    steps = [torch.randn(2, 1, 3, 5 if i == 0 else 1, 4) for i in range(300)]
    for i, (keys, values) in enumerate(steps):
        fed.update(keys, values)
        if i == 0:
            written.update(keys, values)
            continue
        key_room, value_room = written.room()
        key_room[:, :, 4 + i], value_room[:, :, 4 + i] = keys[:, :, 0], values[:, :, 0]
        written.advance(1)
    assert torch.equal(fed.keys, written.keys)
    assert torch.equal(fed.values, written.values)
    assert written.get_seq_length() == 304
