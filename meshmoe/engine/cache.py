"""Key-value caches: one a request, in whatever form the model's family needs.

Nothing here knows a family. At load the model is run twice on a few tokens, without its experts, and asked: which class
of cache it makes for itself, whether that cache may be fed a prompt in chunks, and by how many bytes it grows a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionCacheLayerMixin

from meshmoe.engine.dispatch import current_runner
from meshmoe.model.experts_modules import ExpertsModule

PREFILL_CHUNK_TOKENS = 256
"""Long enough that weights are read once for many tokens, short enough that others get their turn."""

_GROWTH_TOKENS = 256
"""Room is added for at least this many tokens at a time, and at least an eighth of what there is."""


@dataclass(frozen=True, slots=True)
class CacheTraits:
    """What was found out about a model's cache.

    Attributes:
        stock: Whether the model works with transformers' plain ``DynamicCache``; otherwise it makes its own.
        chunks: Whether a prompt may be read in chunks. Recurrent state (linear attention, state space, convolution)
            is computed over the whole prompt by other kernels than those that continue it, so there it may not.
        token_bytes: Growth a token of context.
        fixed_bytes: Size apart from that.
        switch_tokens: A context longer than this has other position frequencies (LongRoPE, Ding et al. 2024) from its
            first token on, so a cache that was made before the switch is useless after it; None where there is no such
            switch.
    """

    stock: bool
    chunks: bool
    token_bytes: int
    fixed_bytes: int
    switch_tokens: int | None = None

    def bytes_for(self, tokens: int) -> int:
        """Estimated size at a context of ``tokens``; sliding windows make it smaller in the end."""
        return self.fixed_bytes + tokens * self.token_bytes

    def prompt_chunks(self, length: int) -> Iterator[slice]:
        """Where a prompt of ``length`` tokens is cut; what cannot be cut is read whole."""
        whole = not self.chunks or (self.switch_tokens is not None and length > self.switch_tokens)
        step = length if whole else PREFILL_CHUNK_TOKENS
        return (slice(begin, min(begin + step, length)) for begin in range(0, length, step))


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers' __init_subclass__
    """A ``DynamicLayer`` with room to grow: a new token is written in place instead of copying the whole past."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room: tuple[Tensor, Tensor] | None = None
        self._length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys ``[1, heads, T, d]`` and values ``[1, heads, T, d']``; returns views of all there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, end = self._length, self._length + key_states.shape[-2]
        keys, values = self._ensure(key_states, value_states, end)
        keys[..., begin:end, :] = key_states
        values[..., begin:end, :] = value_states
        return self.advance(end - begin)

    def room(self) -> tuple[Tensor, Tensor]:
        """Keys and values with room for at least one more token, for whoever writes them in place and then advances.

        Both are ``[1, heads, room, d]``, contiguous. Only for a cache that has been fed.
        """
        assert self.keys is not None and self.values is not None
        return self._ensure(self.keys, self.values, self._length + 1)

    def advance(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Count tokens that have been written into the room; returns views of all there are."""
        assert self._room is not None
        self._length += tokens
        keys, values = (room[..., : self._length, :] for room in self._room)
        self.keys, self.values = keys, values
        return keys, values

    def _ensure(self, keys: Tensor, values: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Room for ``end`` tokens; keys and values say of which shape and dtype."""
        if self._room is None or end > self._room[0].shape[-2]:
            capacity = end + max(_GROWTH_TOKENS, end // 8)
            self._room = (
                self._grown(keys, self._room and self._room[0], capacity),
                self._grown(values, self._room and self._room[1], capacity),
            )
        return self._room

    def _grown(self, new: Tensor, old: Tensor | None, capacity: int) -> Tensor:
        room = new.new_empty((*new.shape[:-2], capacity, new.shape[-1]))
        if old is not None:
            room[..., : self._length, :] = old[..., : self._length, :]
        return room


def new_cache(config: Any, traits: CacheTraits) -> DynamicCache | None:
    """An empty cache for one request; None where the model makes its own in its first pass."""
    if not traits.stock:
        return None
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def cache_bytes(cache: Any) -> int:
    """Bytes of the memory that a cache holds on to, counted once however many views there are of it."""
    storages: dict[int, int] = {}
    _collect(cache, storages)
    return sum(storages.values())


def probe_cache(trunk: Any, config: Any) -> CacheTraits:
    """Run the trunk on a few tokens, with experts that answer zero, and look at the cache that it makes."""
    token = current_runner.set(_ZeroExperts())
    try:
        with torch.no_grad():
            sizes = []
            for length in (2, 4):
                out = trunk(input_ids=torch.zeros(1, length, dtype=torch.int64), use_cache=True)
                sizes.append(cache_bytes(out.past_key_values))
    finally:
        current_runner.reset(token)
    token_bytes = (sizes[1] - sizes[0]) // 2
    stock = type(out.past_key_values) is DynamicCache
    recurrent = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in out.past_key_values.layers)
    return CacheTraits(
        stock=stock,
        chunks=stock and not recurrent,
        token_bytes=token_bytes,
        fixed_bytes=sizes[0] - 2 * token_bytes,
        switch_tokens=_switch_tokens(config),
    )


def _switch_tokens(config: Any) -> int | None:
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]  # one for all layers, or by type
    lengths = [int(kind["original_max_position_embeddings"]) for kind in kinds if kind.get("rope_type") == "longrope"]
    return min(lengths, default=None)


class _ZeroExperts:
    def run(self, experts: ExpertsModule, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        return torch.zeros_like(hidden)


def _collect(value: Any, storages: dict[int, int]) -> None:
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    elif isinstance(value, dict):
        for item in value.values():
            _collect(item, storages)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _collect(item, storages)
    elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
        _collect(vars(value), storages)
