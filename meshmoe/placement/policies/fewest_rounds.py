"""How few rounds a token any placement could have: a lower bound by linear programming.

A layer of a step waits unless all of its experts are at home: ``wait >= 1 - x`` for each, where ``x`` says how far
a node holds an expert. With ``x`` in whole numbers this counts rounds; with fractions allowed, no placement has fewer.
Whoever solves it looks at the very steps that are counted: no policy that has to decide beforehand can reach it.

Source: HiGHS' interior point method (Huangfu & Hall 2018) through ``scipy.optimize.linprog``.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix, vstack

from meshmoe.placement.table import tabulate
from meshmoe.placement.trace import Floats, Ints, Trace, no_steps
from meshmoe.placement.world import World


def fewest_rounds(world: World) -> float:
    """A bound for the rounds of a generated token, mean over nodes.

    Args:
        world: Its links do not matter, nor does its prefill.

    Raises:
        ValueError: The program was not solved.
    """
    shape, count = world.shape, len(world.nodes)
    places = shape.layers * shape.experts
    waits: list[Floats] = []
    columns: list[Ints] = []
    first = 0
    for node, (spec, trace) in enumerate(zip(world.specs, world.traces, strict=True)):
        table = tabulate(shape, spec, Trace(trace.decode, no_steps(shape.layers)))
        step = np.repeat(np.arange(len(table.rates)), np.diff(table.first_slot))
        waits.append(table.rates / max(trace.decode.rates.sum(), 1e-300) / count)
        columns.append(np.column_stack([node * places + table.place, count * places + first + step]))
        first += len(table.rates)
    pairs = np.concatenate(columns)
    rows = np.repeat(np.arange(len(pairs)), 2)
    size = count * places + first
    held = coo_matrix((-np.ones(2 * len(pairs)), (rows, pairs.ravel())), shape=(len(pairs), size))
    exists = np.flatnonzero(shape.exists.ravel())
    cover = coo_matrix(
        (
            -np.ones(count * len(exists)),
            (
                np.tile(np.arange(len(exists)), count),
                (np.arange(count)[:, None] * places + exists).ravel(),
            ),
        ),
        shape=(len(exists), size),
    )
    bytes_ = np.tile(shape.expert_bytes.ravel(), count) / np.repeat(world.capacity_bytes, places)
    budget = coo_matrix((bytes_, (np.repeat(np.arange(count), places), np.arange(count * places))), shape=(count, size))
    result = linprog(
        np.concatenate([np.zeros(count * places), *waits]),
        A_ub=vstack([held, cover, budget]).tocsr(),
        b_ub=np.concatenate([-np.ones(len(pairs) + len(exists)), np.ones(count)]),
        bounds=(0, 1),
        method="highs-ipm",
    )
    if result.x is None:
        raise ValueError(f"the bound was not found: {result.message}")
    return float(result.fun)
