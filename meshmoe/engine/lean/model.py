"""A model on the lean path, shared by its requests: its plan and the rotations of positions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from meshmoe.engine.cache import CacheTraits
from meshmoe.engine.kernels.compiling import once_a_machine
from meshmoe.engine.kernels.crew import desk_here, linear
from meshmoe.engine.kernels.expert import expert_call
from meshmoe.engine.kernels.finite import finite
from meshmoe.engine.lean.attention import BLOCK_TOKENS
from meshmoe.engine.lean.blocks import BlockPool
from meshmoe.engine.lean.little import serve_rows, spread
from meshmoe.engine.lean.plan import LeanPlan, make_plan
from meshmoe.engine.lean.step import compute_resident, finish, run
from meshmoe.engine.lean.tables import Layer, Number, Place, Shape, Token
from meshmoe.engine.rounds.answers import end, take_in
from meshmoe.engine.rounds.attending import attend, wait
from meshmoe.engine.rounds.post import make_post
from meshmoe.model.experts_modules import ExpertsModule
from meshmoe.wire.tensors import RowsInMemory

_POSITIONS = 256
"""Rotations are made for this many positions at a time, always the same ones, so that their bits are the same."""


class LeanModel:
    """See above. Only the compute thread uses it, but for `warm`.

    Attributes:
        plan: The model, as the compiled step sees it.
        expert_calls: Expert calls of a token.
        token_bytes: Keys and values of a token.
    """

    def __init__(self, plan: LeanPlan) -> None:
        self.plan = plan
        self.expert_calls = int(plan.layers[:, Layer.TOP_K].sum())
        heads, size = int(plan.shape[Shape.KV_HEADS]), int(plan.shape[Shape.HEAD_DIM])
        self.token_bytes = len(plan.layers) * 2 * heads * size * plan.embedding.element_size()
        self._rotations: tuple[list[tuple[Tensor, Tensor]], ...] = ([], [])

    @classmethod
    def of(cls, trunk: nn.Module, experts: tuple[ExpertsModule, ...], traits: CacheTraits) -> LeanModel:
        """See `make_plan`. Raises `UnsupportedModelError`."""
        return cls(make_plan(trunk, experts, traits))

    def rotation(self, position: int, long: bool) -> tuple[int, int]:
        """Addresses of a position's cosines and sines, each ``[rotary dim]`` float32, rounded to the model's dtype.

        Args:
            position: Of the token.
            long: Whether with the frequencies of a text that is longer than the model's switch (LongRoPE).
        """
        block, row = divmod(position, _POSITIONS)
        blocks = self._rotations[long]
        while len(blocks) <= block:
            blocks.append(self._rotate(len(blocks) * _POSITIONS, long))
        cos, sin = blocks[block]
        offset = row * cos.shape[1] * cos.element_size()
        return cos.data_ptr() + offset, sin.data_ptr() + offset

    def new_blocks(self, capacity_bytes: int) -> BlockPool:
        """Room for keys and values, under a budget."""
        return BlockPool(BLOCK_TOKENS * self.token_bytes, capacity_bytes)

    def warm(self) -> None:
        """Compile everything for this model's dtype, or find it compiled on disk, without computing anything."""
        with once_a_machine(f"lean-{type(self.plan.tag).__name__}"):
            self._call_all()

    def _call_all(self) -> None:
        plan, none = self.plan, np.zeros((0, len(Token)), np.int64)
        places, layer, one = np.zeros(len(Place), np.int64), np.zeros(len(Layer), np.int64), np.zeros(1, np.int64)
        table, post = np.zeros((1, 1, 2), np.int64), make_post(1, 1).whole
        run(
            *(plan.tag, plan.shape, plan.numbers, plan.layers, places, table, none, table[0], table, one),
            *(0, 0, True, 0, post, -1, one, table[0], plan.ends, 0),
        )
        attend(plan.tag, 0, post, table, 0, -1, 0)
        wait(plan.tag, 0, post, table, 0, 0, 0)
        take_in(plan.tag, post[0], -1, 0, 0, 0)
        end(post, 0, one, table[0])
        compute_resident(plan.tag, plan.shape, layer, places, table[0], table[0], one, 0, 0, 0)
        linear(plan.tag, 0, 0, 0, 0, 0, 1, 0, 0)
        finish(plan.tag, plan.shape, plan.ends, plan.numbers[Number.NORM_EPS], places, none)
        expert_call(plan.tag, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        serve_rows(plan.tag, 0, table[0], one[:0], 0, 0, 0, 0, 0, 0)
        spread(plan.tag, one[:0], 0)
        finite(plan.tag, 0, 0)

    def _rotate(self, begin: int, long: bool) -> tuple[Tensor, Tensor]:
        like, switch = self.plan.embedding[:1, :1], self.plan.switch_tokens
        positions = torch.arange(begin, begin + _POSITIONS)
        if switch is not None:
            # The module looks at the highest position to tell how long the text is.
            positions = torch.cat([positions, torch.tensor([switch])]) if long else positions.clamp(max=switch - 1)
        cos, sin = self.plan.rotary(like, position_ids=positions.unsqueeze(0))
        return cos[0, :_POSITIONS].float().contiguous(), sin[0, :_POSITIONS].float().contiguous()


ROWS_MAX = 256
"""Of a batch."""


class Workspace:
    """A batch's working memory, as `tables.Place` names it.

    Attributes:
        places: The table of addresses.
        rows: The table of rows, ``[ROWS_MAX, ...]``.
        chosen: ``[MoE layers, rows, k]``, the experts of each layer; for as many rows as were asked for last.
        sorting: See `step.run`.
        count: Rows that were asked for last.
        normed: ``[R, H]``, the input of the experts; of as many rows as there is room for.
        hidden: The same, of the rows that were asked for last.
        outputs: ``[R, k, H]`` float32, the experts' outputs.
        outputs_at: Where these begin.
        output_bytes: Of one of them.
        memory: Where ``normed`` lies.
    """

    def __init__(self, plan: LeanPlan) -> None:
        self._plan = plan
        self._rows = self._tokens = 0
        self.places = np.zeros(len(Place), np.int64)
        self.rows = np.zeros((ROWS_MAX, len(Token)), np.int64)
        self._held: dict[Place, Tensor] = {}
        self.count = 0

    def fit(self, rows: int, tokens: int) -> None:
        """Make room for this many rows, and for attention over this many tokens."""
        if rows == self.count and tokens <= self._tokens:
            return
        plan, shape, layers = self._plan, self._plan.shape, self._plan.layers
        hidden, experts = int(shape[Shape.HIDDEN]), int(layers[:, Layer.EXPERTS].max())
        heads, kv_heads, size = (int(shape[at]) for at in (Shape.HEADS, Shape.KV_HEADS, Shape.HEAD_DIM))
        if rows > self._rows:
            self._rows = 1 << (rows - 1).bit_length()
            r, narrow = self._rows, plan.embedding.dtype
            self._held |= {
                Place.X: torch.zeros(r, hidden),
                Place.NORMED: torch.zeros(r, hidden, dtype=narrow),
                Place.QKV: torch.zeros(r, (heads + 2 * kv_heads) * size),
                Place.QUERIES: torch.zeros(heads * size, dtype=narrow),
                Place.ATTENDED: torch.zeros(r, heads * size, dtype=narrow),
                Place.MIXED: torch.zeros(size),
                Place.LOGITS: torch.zeros(r, experts),
                Place.WORK: torch.zeros(2 * experts),
                Place.WEIGHTS: torch.zeros(r, plan.top_k),
                Place.OUTPUTS: torch.zeros(r, plan.top_k, hidden),
                Place.SUM: torch.zeros(r, hidden),
                Place.INNER: torch.zeros(r, 3 * plan.widest),
                Place.GATHERED: torch.zeros(r, hidden, dtype=narrow),
                Place.COMPUTED: torch.zeros(r, hidden),
            }
            self.normed, self.outputs = self._held[Place.NORMED], self._held[Place.OUTPUTS]
            self.outputs_at, self.output_bytes = self.outputs.data_ptr(), 4 * hidden
            self.memory = RowsInMemory.of(self.normed)
            self.sorting = np.zeros(experts + 1 + r * plan.top_k, np.int64)
        if tokens > self._tokens:
            self._tokens = tokens + max(256, tokens // 8)
            self._held[Place.SCORES] = torch.zeros(heads // kv_heads, self._tokens)
            self._held[Place.ONES] = torch.ones(self._tokens)
        for place, tensor in self._held.items():
            self.places[place] = tensor.data_ptr()
        self.places[Place.DESK] = desk_here()
        if rows != self.count:
            self.chosen = np.full((int(layers[:, Layer.MOE].max()) + 1, rows, plan.top_k), -1, np.int64)
            self.count, self.hidden = rows, self.normed[:rows]
