"""A node's demand in short, for the other end of a bargain: its most frequent routing sets.

With its partner's sketch a proposer can look for the best division of experts between the two; without one it can
only guess from demand an expert. What a sketch tells is less than a peer learns anyway: it sees the hidden states and
experts of every call that comes to it. Prices are still each end's own, from its whole trace: a poor or a false sketch
makes poor proposals, which the other end's prices turn down.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from meshmoe.core.messages import ByteCount
from meshmoe.placement.table import Table, lay_out
from meshmoe.placement.trace import Ints
from meshmoe.placement.world import ModelShape, NodeSpec

SLOTS_MAX = 8192
"""Of a sketch: 24 KiB of experts and rows, and less for steps."""

_Blob = Annotated[bytes, Meta(max_length=2 * SLOTS_MAX)]
_Seconds = Annotated[float, Meta(ge=0, le=1e6)]


class Sketch(msgspec.Struct, frozen=True, array_like=True):
    """Some steps of a trace, layer by layer.

    Attributes:
        version: Rises when the demand changes; over all lives of a node.
        capacity_bytes: The node's budget for experts.
        expert_s, row_s: Its means.
        steps: Steps of each layer, as ``<u2``.
        slots: Slots of each step, as ``<u2``.
        experts: Of each slot, as ``<u2``.
        rows: Of each slot, as ``<u1``.
        rates: Of each step, a second, as ``<f4``.
    """

    version: Annotated[int, Meta(ge=0, lt=1 << 62)]
    capacity_bytes: ByteCount
    expert_s: _Seconds
    row_s: _Seconds
    steps: _Blob
    slots: _Blob
    experts: _Blob
    rows: _Blob
    rates: Annotated[bytes, Meta(max_length=4 * SLOTS_MAX)]


def shortened(table: Table, shape: ModelShape, slots_max: int = SLOTS_MAX) -> Table:
    """The heaviest steps of each layer; rates are raised so that all steps together weigh what they did."""
    layers = len(table.first_step) - 1
    counts = np.diff(table.first_slot)
    step_rows = np.add.reduceat(table.rows, table.first_slot[:-1]) if len(counts) else np.zeros(0)
    weight, rates = table.rates * step_rows, table.rates.copy()
    if len(table.place) <= slots_max:
        return table
    kept = np.zeros(len(counts), bool)
    for layer in range(layers):
        of = slice(*table.first_step[layer : layer + 2])
        heavy = np.argsort(-weight[of], kind="stable")
        fits = np.cumsum(counts[of][heavy]) <= slots_max // layers
        chosen = table.first_step[layer] + heavy[fits]
        kept[chosen] = True
        rates[chosen] *= weight[of].sum() / max(weight[chosen].sum(), 1e-300)
    slots = np.repeat(kept, counts)
    layer_of = np.repeat(np.arange(layers), np.diff(table.first_step))[kept]
    return lay_out(
        shape, layer_of, counts[kept], rates[kept], table.place[slots], table.rows[slots], table.local_s[slots]
    )


def sketch_of(version: int, spec: NodeSpec, table: Table) -> Sketch:
    """Put a table that was `shortened` into a message."""
    return Sketch(
        version,
        spec.capacity_bytes,
        spec.expert_s,
        spec.row_s,
        np.diff(table.first_step).astype("<u2").tobytes(),
        np.diff(table.first_slot).astype("<u2").tobytes(),
        table.expert.astype("<u2").tobytes(),
        np.minimum(table.rows, 255).astype("<u1").tobytes(),
        table.rates.astype("<f4").tobytes(),
    )


def table_of(sketch: Sketch, shape: ModelShape) -> Table | None:
    """Read a sketch; None if it is none of this model."""
    try:
        steps, slots, experts = (
            np.frombuffer(blob, "<u2").astype(np.int64) for blob in (sketch.steps, sketch.slots, sketch.experts)
        )
        rows, rates = np.frombuffer(sketch.rows, "<u1"), np.frombuffer(sketch.rates, "<f4").astype(np.float64)
    except ValueError:
        return None
    layer = np.repeat(np.arange(len(steps)), steps)
    if not (len(steps) == shape.layers and len(layer) == len(slots) == len(rates)):
        return None
    slot_layer: Ints = np.repeat(layer, slots)
    sound = (
        len(slot_layer) == len(experts) == len(rows)
        and (experts < shape.experts).all()
        and (slots > 0).all()
        and bool(np.isfinite(rates).all())
        and bool(((rates >= 0) & (rates < 1e9)).all())
    )
    if not sound:
        return None
    place, wide = slot_layer * shape.experts + experts, rows.astype(np.float64)
    return lay_out(shape, layer, slots, rates, place, wide, sketch.expert_s + wide * sketch.row_s)
