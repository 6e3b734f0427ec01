"""A forward of a fixed number of rows on a card, in CUDA graphs that reach as far as experts are likely to be here.

A layer is *routed* when its router has chosen and its resident experts are computed, and *joined* when all experts'
outputs are summed. A *segment* goes from one routed layer (or the embedding) to a later one (or to the logits): it
joins the former, computes what lies between, and routes the latter. Each router notes on the card whether it chose an
expert that is not resident, and the host looks at the end of a segment. If a layer in between lacked one, what came
after it is worthless, but its own input is kept, so the host goes back there.

So where all is local, a forward is one segment: one launch, one look. Where layers lack experts, segments end at the
next layer, and nothing is computed in vain. Which it is, is decided by how often layers lacked something lately.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meshmoe.engine.cuda.blocks import DeviceBlocks
from meshmoe.engine.cuda.inputs import StepInputs
from meshmoe.engine.cuda.kernels import (
    SPLIT_TOKENS,
    attend_join,
    attend_split,
    experts_down,
    experts_up,
    heads_to_cache,
    join_rows,
    linear_rows,
    next_power_of_2,
    norm_rows,
    route_rows,
)
from meshmoe.engine.cuda.weights import DeviceLayer, DeviceWeights
from meshmoe.engine.lean.attention import BLOCK_TOKENS

WHOLE_BELOW = 0.5
"""Layers likely to lack an expert, from which on segments end at the next layer."""

FADING = 0.2
"""How fast old experience of that fades."""

ALL_HERE = 1 << 30
"""What ``lacking`` says when no layer lacks an expert."""


@dataclass(frozen=True, slots=True)
class Tile:
    """How a product is cut: columns and depth of a program's tile, its warps, loads in flight. Measured on an H100."""

    columns: int
    depth: int
    warps: int
    stages: int

    def options(self) -> dict[str, int]:
        """As the kernels take them."""
        return {"N": self.columns, "K": self.depth, "num_warps": self.warps, "num_stages": self.stages}


UP_TILE = Tile(16, 128, 4, 4)
DOWN_TILE = Tile(32, 128, 4, 4)


@dataclass(frozen=True, slots=True)
class Missing:
    """A layer that lacks experts.

    Attributes:
        layer: Which.
        hidden: ``[B, H]``, the input of its experts, on the card.
        hidden_here: The same on the host, until the step goes on.
        experts, rows, places: Of each lacking pair, on the host: the expert, the row, its place among the row's chosen.
        pairs: ``[n]`` int64 on the host: the same pairs as numbers of ``[B * k]``.
    """

    layer: int
    hidden: Tensor
    hidden_here: Tensor
    experts: NDArray[np.int64]
    rows: NDArray[np.int64]
    places: NDArray[np.int64]
    pairs: Tensor


class DecodeStep:
    """Forwards of a fixed number of rows; inputs and outputs stay at their places in the card's memory."""

    def __init__(self, weights: DeviceWeights, blocks: DeviceBlocks, rows: int, reach: int) -> None:
        """Make room.

        Args:
            weights: The model.
            blocks: Where keys and values are.
            rows: Of every step; those that are not needed read position 0 of the idle block.
            reach: Longest sequence; a multiple of a block.
        """
        shape, device, dtype = weights.shape, weights.device, weights.dtype
        self._weights, self._pool, self.rows, self.reach = weights, blocks, rows, reach
        self._blocks, self._splits = reach // BLOCK_TOKENS, -(-reach // SPLIT_TOKENS)
        layers, k = len(weights.layers), shape.top_k

        def room(*size: int, of: torch.dtype = dtype) -> Tensor:
            return torch.zeros(size, dtype=of, device=device)

        self.inputs = StepInputs(rows, self._blocks, device)
        self.tokens, self.positions, self.local = self.inputs.tokens, self.inputs.positions, self.inputs.local
        self.tables, self.also_from, self.also = self.inputs.tables, self.inputs.also_from, self.inputs.also
        self.tables.fill_(blocks.idle)
        self.logits = room(rows, shape.vocabulary)
        self._x, self._last = room(rows, shape.hidden), room(rows, shape.hidden)
        self._normed, self._kept = room(layers, rows, shape.hidden), room(layers, rows, shape.hidden)
        self._qkv = room(rows, (shape.heads + 2 * shape.kv_heads) * shape.head_dim)
        self._queries = room(rows, shape.heads, shape.head_dim)
        self._attended = room(rows, shape.heads * shape.head_dim)
        self._partial = room(rows, self._splits, shape.heads, shape.head_dim, of=torch.float32)
        self._tops = room(rows, self._splits, shape.heads, of=torch.float32)
        self._sums = room(rows, self._splits, shape.heads, of=torch.float32)
        self._scores = room(rows, shape.experts)
        self._chosen, self._held = room(layers, rows, k, of=torch.int32), room(layers, rows, k, of=torch.int32)
        self._shares = room(layers, rows, k)
        self._inner, self._outputs = room(rows * k, shape.width), room(rows * k, shape.hidden)
        self._lacking = room(1, of=torch.int32)
        # What the host looks at comes into memory that the card writes to by itself: one wait for all of it.
        self._found, self._pairs = room(rows * k, shape.hidden), room(rows * k, of=torch.int64)
        self._found_here = torch.zeros(rows * k, shape.hidden, dtype=dtype, pin_memory=True)
        self._pairs_here = torch.zeros(rows * k, dtype=torch.int64, pin_memory=True)
        self._lacking_here = torch.zeros(1, dtype=torch.int32, pin_memory=True)
        self._routed_here = torch.zeros(2, rows, k, dtype=torch.int32, pin_memory=True)
        self._normed_here = torch.zeros(rows, shape.hidden, dtype=dtype, pin_memory=True)
        where = weights.rotary.inv_freq.device
        at, like = torch.arange(reach, device=where).unsqueeze(0), torch.zeros(1, 1, 1, dtype=dtype, device=where)
        cos, sin = weights.rotary(like, position_ids=at)
        self._cos, self._sin = cos[0].to(device).contiguous(), sin[0].to(device).contiguous()
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._misses = np.zeros(layers)
        """Of each layer, how often it lacked an expert lately, 0 to 1."""

    def run(self) -> Missing | None:
        """Read ``tokens`` at ``positions`` (``tables`` say where their sequences lie); gives ``logits``, ``[rows, V]``.

        Row *r* is stored in the blocks ``also[also_from[r] : also_from[r + 1]]`` as well, for forks that read it, too.

        Returns:
            None when it is done; or the first layer that lacks an expert: then `resume`.
        """
        return self._go(-1)

    def resume(self, missing: Missing, outputs: Tensor) -> Missing | None:
        """Go on once the lacking experts' outputs are there.

        Args:
            missing: What `run` or `resume` returned.
            outputs: ``[n, H]``, of the pairs in ``missing.pairs``.
        """
        found, pairs = self._found[: len(outputs)], self._pairs[: len(outputs)]
        self._found_here[: len(outputs)] = outputs
        self._pairs_here[: len(outputs)] = missing.pairs
        found.copy_(self._found_here[: len(outputs)], non_blocking=True)
        pairs.copy_(self._pairs_here[: len(outputs)], non_blocking=True)
        self._outputs.index_copy_(0, pairs, found)
        return self._go(missing.layer)

    @property
    def chosen(self) -> Tensor:
        """``[layers, rows, k]`` int32 on the card, what the routers of the last forward chose; -1 fills up."""
        return self._chosen

    def _go(self, at: int) -> Missing | None:
        """From the routed layer ``at`` on, whose outputs are all there."""
        last = len(self._weights.layers)
        while at < last:
            end = last if self._misses[at + 1 :].sum() < WHOLE_BELOW else at + 1
            graph = self._graphs.get((at, end))
            if graph is None:
                graph = self._graphs[at, end] = self._capture(at, end)
            graph.replay()
            if end < last:
                self._report(end)  # most likely it is this one that lacks something
            self._lacking_here.copy_(self._lacking, non_blocking=True)
            torch.cuda.current_stream().synchronize()
            lacking = int(self._lacking_here[0])
            seen = slice(at + 1, min(end, lacking, last - 1) + 1)
            lacked = np.arange(seen.start, seen.stop) == lacking
            self._misses[seen] += FADING * (lacked - self._misses[seen])
            if lacking != ALL_HERE:
                if lacking < end:  # what came after it used its working memory
                    self._experts(lacking)
                    self._report(lacking)
                    torch.cuda.current_stream().synchronize()
                return self._missing(lacking)
            at = end
        return None

    def _report(self, layer: int) -> None:
        """Have the card tell the host what a layer's router chose, and for which input."""
        self._routed_here[0].copy_(self._chosen[layer], non_blocking=True)
        self._routed_here[1].copy_(self._held[layer], non_blocking=True)
        self._normed_here.copy_(self._normed[layer], non_blocking=True)

    def _missing(self, layer: int) -> Missing:
        chosen, held = self._routed_here.numpy().astype(np.int64)
        rows, places = np.nonzero((chosen >= 0) & (held < 0))
        experts = chosen[rows, places]
        order = np.argsort(experts, kind="stable")  # experts ascend, and the rows of each
        pairs = torch.from_numpy((rows * self._weights.shape.top_k + places)[order])
        hidden, here = self._normed[layer], self._normed_here
        return Missing(layer, hidden, here, experts[order], rows[order], places[order], pairs)

    def _capture(self, begin: int, end: int) -> torch.cuda.CUDAGraph:
        outputs = self._outputs.clone()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._segment(begin, end)  # compiles what is not compiled yet
        torch.cuda.current_stream().wait_stream(stream)
        self._outputs.copy_(outputs)
        graph = torch.cuda.CUDAGraph()
        # Other threads may load experts onto the card meanwhile, or serve another engine.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._segment(begin, end)
        return graph

    def _segment(self, begin: int, end: int) -> None:
        weights, last = self._weights, len(self._weights.layers)
        self._lacking.fill_(ALL_HERE)
        if begin < 0:
            torch.index_select(weights.embedding, 0, self.tokens, out=self._x)
        else:
            self._join(begin)
        for at in range(begin + 1, min(end, last - 1) + 1):
            layer = weights.layers[at]
            self._mix_tokens(layer, at)
            self._route(layer, at)
            self._experts(at)
            if at < end:
                self._join(at)
        if end == last:
            self._norm(self._x, weights.norm, self._last)
            self._linear(self._last, weights.head, self.logits)

    def _norm(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        shape = self._weights.shape
        norm_rows[(self.rows,)](
            x, weight, out, shape.norm_eps, hidden=shape.hidden, BLOCK=next_power_of_2(shape.hidden), num_warps=8
        )

    def _linear(self, x: Tensor, weight: Tensor, out: Tensor, residual: Tensor | None = None) -> None:
        width, inner = weight.shape
        n = 64 if width > 32768 else 32 if width > 4096 else 16
        grid = (-(-width // n), -(-self.rows // 16))
        linear_rows[grid](
            x, weight, out if residual is None else residual, out, self.rows, width,
            inner=inner, ADD=residual is not None, N=n, K=128, num_warps=4, num_stages=4,
        )  # fmt: skip

    def _mix_tokens(self, layer: DeviceLayer, at: int) -> None:
        shape, keys, values = self._weights.shape, self._pool.keys(at), self._pool.values(at)
        heads, kv, d, rows = shape.heads, shape.kv_heads, shape.head_dim, self.rows
        normed = self._normed[at]
        self._norm(self._x, layer.in_norm, normed)
        self._linear(normed, layer.qkv, self._qkv)
        heads_to_cache[(rows, heads + 2 * kv)](
            self._qkv, layer.q_norm, layer.k_norm, self._cos, self._sin, self.positions, self.tables,
            self.also_from, self.also, keys, values, self._queries, shape.norm_eps,
            HEADS=heads, KV=kv, D=d, NORM=layer.q_norm is not None, BLOCK=BLOCK_TOKENS, STRIDE=self._pool.stride,
            MAX_BLOCKS=self._blocks, num_warps=1,
        )  # fmt: skip
        attend_split[(rows, kv, self._splits)](
            self._queries, keys, values, self.positions, self.tables, self._partial, self._tops, self._sums,
            shape.scale,
            HEADS=heads, KV=kv, D=d, BLOCK=BLOCK_TOKENS, STRIDE=self._pool.stride, SPLIT=SPLIT_TOKENS,
            GROUP=max(16, next_power_of_2(heads // kv)), SPLITS=self._splits, MAX_BLOCKS=self._blocks, num_warps=4,
        )  # fmt: skip
        attend_join[(rows, heads)](
            self._partial, self._tops, self._sums, self.positions, self._attended,
            HEADS=heads, D=d, SPLIT=SPLIT_TOKENS, SPLITS=self._splits, num_warps=1,
        )  # fmt: skip
        self._linear(self._attended, layer.o, self._kept[at], residual=self._x)
        self._norm(self._kept[at], layer.post_norm, normed)

    def _route(self, layer: DeviceLayer, at: int) -> None:
        shape = self._weights.shape
        self._linear(self._normed[at], layer.router, self._scores)
        route_rows[(self.rows,)](
            self._scores, self._weights.experts[at], self.local, self._chosen[at], self._shares[at], self._held[at],
            self._lacking, at,
            EXPERTS=shape.experts, E=next_power_of_2(shape.experts), TOP_K=shape.top_k, NORMALISE=shape.normalise,
            ROUND=shape.round_weights, num_warps=1,
        )  # fmt: skip

    def _experts(self, at: int) -> None:
        compute_pairs(self._weights.experts[at], self._normed[at], self._held[at], self._inner, self._outputs)

    def _join(self, at: int) -> None:
        shape = self._weights.shape
        join_rows[(-(-shape.hidden // 256), self.rows)](
            self._outputs, self._chosen[at], self._shares[at], self._kept[at], self._x,
            HIDDEN=shape.hidden, TOP_K=shape.top_k, N=256, num_warps=4,
        )  # fmt: skip


def compute_pairs(table: Tensor, x: Tensor, held: Tensor, inner: Tensor, outputs: Tensor) -> None:
    """Compute the experts of rows, here as for a peer.

    Args:
        table: ``[E, 2]`` int64, the addresses of the experts, as in `DeviceWeights`.
        x: ``[B, H]``.
        held: ``[B, n]`` int32, resident experts; -1 is left out, and no row names an expert twice.
        inner: ``[B * n, I]``, working memory.
        outputs: ``[B * n, H]``; gets the outputs.
    """
    (rows, each), hidden, width = held.shape, x.shape[1], inner.shape[1]
    sizes = {"HIDDEN": hidden, "WIDTH": width, "TOP_K": each, "KS": next_power_of_2(each)}
    pairs, up, down = rows * each, UP_TILE, DOWN_TILE
    experts_up[(-(-width // up.columns), pairs)](x, table, held, inner, rows, **sizes, **up.options())
    experts_down[(-(-hidden // down.columns), pairs)](inner, table, held, outputs, rows, **sizes, **down.options())
