"""A model on the lean path, shared by its requests: its plan, the rotations of positions, how long a layer takes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from meshmoe.engine.cache import CacheTraits
from meshmoe.engine.kernels.arithmetic import linear
from meshmoe.engine.lean.attention import normalise
from meshmoe.engine.lean.plan import LeanPlan, make_plan
from meshmoe.engine.lean.step import compute_resident, embed, run
from meshmoe.engine.lean.tables import Layer, Number, Place, Shape
from meshmoe.model.experts_modules import ExpertsModule

SLICE_S = 0.001
"""Time between two looks at what is more urgent; a layer is not divided."""

_POSITIONS = 256
"""Rotations are made for this many positions at a time, always the same ones, so that their bits are the same."""


class LeanModel:
    """See above. Only the compute thread uses it, but for `warm`.

    Attributes:
        plan: The model, as the compiled step sees it.
        expert_calls: Expert calls of a token.
        layers_a_slice: How many layers the compiled step is asked for at once.
    """

    def __init__(self, plan: LeanPlan) -> None:
        self.plan = plan
        self.expert_calls = int(plan.layers[:, Layer.TOP_K].sum())
        self.layers_a_slice = 1
        self._layer_s = SLICE_S
        self._rotations: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def of(cls, trunk: nn.Module, experts: tuple[ExpertsModule, ...], traits: CacheTraits) -> LeanModel:
        """See `make_plan`. Raises `UnsupportedModelError`."""
        return cls(make_plan(trunk, experts, traits))

    def rotation(self, position: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of a position, each ``[rotary dim]`` float32, rounded to the model's dtype."""
        if not self.plan.static_rotary:
            cos, sin = self._rotate(position, position + 1)
            return cos[0], sin[0]
        block, row = divmod(position, _POSITIONS)
        while len(self._rotations) <= block:
            begin = len(self._rotations) * _POSITIONS
            self._rotations.append(self._rotate(begin, begin + _POSITIONS))
        cos, sin = self._rotations[block]
        return cos[row], sin[row]

    def account(self, took_s: float, layers: int) -> None:
        """Note what layers took."""
        self._layer_s += (took_s / layers - self._layer_s) / 8
        self.layers_a_slice = max(1, min(len(self.plan.layers), int(SLICE_S / self._layer_s)))

    def warm(self) -> None:
        """Compile everything for this model's dtype, or find it compiled on disk, without computing anything."""
        plan, none = self.plan, np.zeros((1, 3), np.int64)
        places, layer = np.zeros(len(Place), np.int64), np.zeros(len(Layer), np.int64)
        run(
            *(plan.tag, plan.shape, plan.numbers, plan.layers, places, none[None], none, none[0], none),
            *(0, 0, 0, False),
        )
        compute_resident(plan.tag, plan.shape, layer, places, none, none[0])
        embed(plan.tag, 0, 0, 0, 0)
        linear(plan.tag, 0, 0, 0, 0, 1, 0, 0)
        normalise(plan.tag, 0, 0, 0, plan.numbers[Number.NORM_EPS], 0, 0, 0)

    def _rotate(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        like = self.plan.embedding[:1, :1]
        cos, sin = self.plan.rotary(like, position_ids=torch.arange(begin, end).unsqueeze(0))
        return cos[0].float().contiguous(), sin[0].float().contiguous()


class Workspace:
    """A request's working memory, as `tables.Place` names it.

    Attributes:
        places: The table of addresses.
        chosen: ``[MoE layers, k]``, the experts of each layer.
        normed: ``[H]``, the input of the experts.
        outputs: ``[k, H]``, the experts' outputs.
    """

    def __init__(self, plan: LeanPlan) -> None:
        shape, layers = plan.shape, plan.layers
        hidden, experts = int(shape[Shape.HIDDEN]), int(layers[:, Layer.EXPERTS].max())
        heads, kv_heads, size = (int(shape[at]) for at in (Shape.HEADS, Shape.KV_HEADS, Shape.HEAD_DIM))
        self._group = heads // kv_heads
        self.places = np.zeros(len(Place), np.int64)
        self.chosen = np.zeros((int(layers[:, Layer.MOE].max()) + 1, plan.top_k), np.int64)
        self.normed = np.zeros(hidden, np.float32)
        self.outputs = np.zeros((plan.top_k, hidden), np.float32)
        self._held = {
            Place.X: np.zeros(hidden, np.float32),
            Place.NORMED: self.normed,
            Place.QKV: np.zeros((heads + 2 * kv_heads) * size, np.float32),
            Place.ATTENDED: np.zeros(heads * size, np.float32),
            Place.LOGITS: np.zeros(2 * experts, np.float32),
            Place.WEIGHTS: np.zeros(plan.top_k, np.float32),
            Place.OUTPUTS: self.outputs,
            Place.SUM: np.zeros(max(hidden, experts), np.float32),
            Place.INNER: np.zeros(3 * plan.widest, np.float32),
        }
        self._publish()

    def fit(self, tokens: int) -> None:
        """Make room for attention over this many tokens."""
        self._held[Place.SCORES] = np.zeros(self._group * tokens, np.float32)
        self._held[Place.ONES] = np.ones(tokens, np.float32)
        self._publish()

    def _publish(self) -> None:
        for place, array in self._held.items():
            self.places[place] = array.ctypes.data
