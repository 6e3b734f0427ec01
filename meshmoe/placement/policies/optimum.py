"""The optimum, for small cases, and a lower bound for larger ones: integer programming with HiGHS.

One binary variable says that a node holds an expert. For each routing set (equal sets of a node's layer are one, their
rates added), variables say how long its layer takes: at least the branch of every expert that is away, and at least the
local compute. Where holders differ in distance, a variable for each step from one to the next farther says whether an
expert has to be fetched from beyond it: 1 if there is no nearer holder. A branch is the nearest one's time and the
further steps taken. So the objective is `meshmoe.placement.cost` exactly.

Source: HiGHS (Huangfu & Hall 2018) through ``scipy.optimize.milp``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from meshmoe.placement.cost import Branches, layer_steps
from meshmoe.placement.policies.base import no_holders
from meshmoe.placement.trace import Floats, Ints, Steps
from meshmoe.placement.world import Holders, World


@dataclass(frozen=True)
class Optimum:
    """What the solver found.

    Attributes:
        holders: The best placement found; None when only the relaxation was solved, or none was found in time.
        cost: Its `mesh_cost`, seconds a second; infinite without one.
        bound: No placement costs less.
    """

    holders: Holders | None
    cost: float
    bound: float


@dataclass
class _Program:
    """A program under construction: columns with costs, rows ``low <= A x``."""

    costs: list[float]
    row: list[int]
    column: list[int]
    value: list[float]
    low: list[float]

    def add_row(self, terms: dict[int, float], low: float) -> None:
        self.row += [len(self.low)] * len(terms)
        self.column += terms.keys()
        self.value += terms.values()
        self.low.append(low)


def solve(world: World, *, time_limit_s: float = 60.0, relax: bool = False) -> Optimum:
    """Find the placement with the least mesh cost on the world's traces.

    Args:
        world: With its traces.
        time_limit_s: After which the best placement so far is taken; the bound is valid even then.
        relax: Solve the linear relaxation only, for its bound.
    """
    shape, count = world.shape, len(world.nodes)
    size = count * shape.layers * shape.experts
    index = np.arange(size).reshape(count, shape.layers, shape.experts)
    program = _Program([0.0] * size, [], [], [], [])
    constant = 0.0
    for node, trace in enumerate(world.traces):
        rings = _rings(world, node)
        beyond = _beyond(program, world, node, rings, index)
        for steps in (trace.decode, trace.prefill):
            for layer in range(shape.layers if len(steps) else 0):
                constant += _add_layer(program, world, node, steps, layer, rings, beyond[:, layer])
    for layer, expert in np.argwhere(shape.exists):
        program.add_row(dict.fromkeys(index[:, layer, expert].tolist(), 1.0), 1.0)
    for node, capacity in enumerate(world.capacity_bytes):
        sizes = shape.expert_bytes.ravel() / capacity
        program.add_row(dict(zip(index[node].ravel().tolist(), (-sizes).tolist(), strict=True)), -1.0)
    return _run(world, program, constant, size, time_limit_s, relax)


class _Ring(NamedTuple):
    """Holders that are equally far from a node."""

    members: list[int]
    call_s: float
    byte_s: float
    row_s: float


def _rings(world: World, node: int) -> list[_Ring]:
    """Of a node, nearest first."""
    call_s, byte_s = world.call_s(1.0)[node], world.byte_s[node]
    time_s = call_s + 2 * world.shape.row_bytes * byte_s
    rings: list[_Ring] = []
    for other in np.argsort(time_s, kind="stable").tolist():
        if other == node:
            continue
        ring = _Ring([other], float(call_s[other]), float(byte_s[other]), world.specs[other].row_s)
        last = rings[-1] if rings else None
        if last and np.allclose(ring[1:], last[1:], rtol=1e-9, atol=0):
            last.members.append(other)
        else:
            rings.append(ring)
    return rings


def _beyond(program: _Program, world: World, node: int, rings: list[_Ring], index: Ints) -> Ints:
    """Columns ``[rings, layers, experts]``: whether a node must go so far. The first is that of holding it at home."""
    columns = np.empty((len(rings), *index.shape[1:]), np.int64)
    columns[0] = index[node]
    for layer, expert in np.argwhere(world.shape.exists).tolist():
        nearer = [int(index[node, layer, expert])]
        for number in range(1, len(rings)):
            nearer += index[rings[number - 1].members, layer, expert].tolist()
            columns[number, layer, expert] = len(program.costs)
            program.add_row({len(program.costs): 1.0, **dict.fromkeys(nearer, 1.0)}, 1.0)
            for home in nearer:  # the way beyond may be the better one in one respect
                program.add_row({len(program.costs): -1.0, home: -1.0}, -1.0)
            program.costs.append(0.0)
    return columns


def _add_layer(
    program: _Program, world: World, node: int, steps: Steps, layer: int, rings: list[_Ring], beyond: Ints
) -> float:
    """Add a layer of a node's steps; returns what it costs besides, with nothing at home and all in the first ring."""
    shape, spec = world.shape, world.specs[node]
    plain, constant = np.ones(shape.experts), 0.0
    priced = [
        layer_steps(spec, shape.row_bytes, steps, layer, Branches(plain * r.call_s, plain * r.byte_s, plain * r.row_s))
        for r in rings
    ]
    first = priced[0]
    sets: dict[bytes, list[int]] = {}
    for step in range(len(steps)):
        key = np.sort(first.slots[step] * 1_000_003 + steps.rows[step, layer]).tobytes()
        sets.setdefault(key, []).append(step)
    for members in sets.values():
        step, rate = members[0], float(first.rates[members].sum())
        used = np.flatnonzero(first.slots[step] < shape.experts)
        taken = len(program.costs)
        program.costs.append(rate)
        compute = {taken: 1.0}
        for slot in used.tolist():
            expert = first.slots[step, slot]
            home = int(beyond[0, expert])
            wire_s, remote_s = (
                [float(getattr(p, name)[step, slot]) for p in priced] for name in ("wire_s", "remote_s")
            )
            program.costs[home] -= rate * wire_s[0]
            constant += rate * wire_s[0]
            wait = {taken: 1.0, home: remote_s[0]}
            for number in range(1, len(rings)):
                column = int(beyond[number, expert])
                program.costs[column] += rate * (wire_s[number] - wire_s[number - 1])
                wait[column] = remote_s[number - 1] - remote_s[number]
            program.add_row(wait, remote_s[0])
            compute[home] = -float(first.local_s[step, slot])
        program.add_row(compute, 0.0)
    return constant


def _run(world: World, program: _Program, constant: float, size: int, time_limit_s: float, relax: bool) -> Optimum:
    costs: Floats = np.array(program.costs)
    matrix = csr_matrix((program.value, (program.row, program.column)), shape=(len(program.low), len(costs)))
    upper = np.full(len(costs), np.inf)
    upper[:size] = np.tile(world.shape.exists.ravel(), len(world.nodes))
    integral = np.zeros(len(costs))
    integral[:size] = 0 if relax else 1
    result = milp(
        costs,
        constraints=LinearConstraint(matrix, lb=np.array(program.low)),
        bounds=Bounds(np.zeros(len(costs)), upper),
        integrality=integral,
        options={"time_limit": time_limit_s},
    )
    if relax:
        if result.x is None:
            raise ValueError(f"the relaxation was not solved: {result.message}")
        return Optimum(None, float("inf"), float(result.fun) + constant)
    bound = float(result.mip_dual_bound) + constant if result.mip_dual_bound is not None else constant
    if result.x is None:
        return Optimum(None, float("inf"), bound)
    holders = no_holders(world)
    holders[:] = (result.x[:size] > 0.5).reshape(holders.shape)
    return Optimum(holders, float(result.fun) + constant, bound)
