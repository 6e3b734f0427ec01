"""The optimum, for small cases, and a lower bound for larger ones: integer programming with HiGHS.

One binary variable says that a node holds an expert. For each routing set (equal sets of a node's layer are one, their
rates added), variables say how long its layer takes: at least the branch of every expert that is away, and at least the
local compute. The objective is `meshmoe.placement.cost` exactly, provided that each expert has one way to be reached
whoever else holds it: a full mesh of equal links and equal speeds. Other worlds are refused.

Source: HiGHS (Huangfu & Hall 2018) through ``scipy.optimize.milp``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from meshmoe.placement.cost import Branches, layer_steps
from meshmoe.placement.policies.base import no_holders
from meshmoe.placement.trace import Floats
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
        world: With equal links and speeds between all pairs.
        time_limit_s: After which the best placement so far is taken; the bound is valid even then.
        relax: Solve the linear relaxation only, for its bound.

    Raises:
        ValueError: Links or speeds differ.
    """
    shape, count = world.shape, len(world.nodes)
    away = ~np.eye(count, dtype=bool)
    calls_s, bytes_s = world.call_s(1.0)[away], world.byte_s[away]
    if np.ptp(calls_s) > 1e-12 or np.ptp(bytes_s) > 1e-18 or len({s.row_s for s in world.specs}) > 1:
        raise ValueError("the optimum is only computed for equal links and speeds")
    size = count * shape.layers * shape.experts
    index = np.arange(size).reshape(count, shape.layers, shape.experts)
    program = _Program([0.0] * size, [], [], [], [])
    constant = 0.0
    plain = np.ones(shape.experts)
    branch = Branches(plain * calls_s[0], plain * bytes_s[0], plain * world.specs[0].row_s)
    for node, trace in enumerate(world.traces):
        for steps in (trace.decode, trace.prefill):
            for layer in range(shape.layers if len(steps) else 0):
                priced = layer_steps(world.specs[node], shape.row_bytes, steps, layer, branch)
                sets: dict[bytes, list[int]] = {}
                for step in range(len(steps)):
                    key = np.sort(priced.slots[step] * 1_000_003 + steps.rows[step, layer]).tobytes()
                    sets.setdefault(key, []).append(step)
                for members in sets.values():
                    step, rate = members[0], float(priced.rates[members].sum())
                    used = priced.slots[step] < shape.experts
                    columns = index[node, layer, priced.slots[step][used]].tolist()
                    remote, local = priced.remote_s[step][used].tolist(), priced.local_s[step][used].tolist()
                    for column, wire_s in zip(columns, priced.wire_s[step][used].tolist(), strict=True):
                        program.costs[column] -= rate * wire_s
                        constant += rate * wire_s
                    taken = len(program.costs)
                    program.costs.append(rate)
                    for column, remote_s in zip(columns, remote, strict=True):
                        program.add_row({taken: 1.0, column: remote_s}, remote_s)
                    program.add_row({taken: 1.0, **{c: -s for c, s in zip(columns, local, strict=True)}}, 0.0)
    for layer, expert in np.argwhere(shape.exists):
        program.add_row(dict.fromkeys(index[:, layer, expert].tolist(), 1.0), 1.0)
    for node, capacity in enumerate(world.capacity_bytes):
        sizes = shape.expert_bytes.ravel() / capacity
        program.add_row(dict(zip(index[node].ravel().tolist(), (-sizes).tolist(), strict=True)), -1.0)
    return _run(world, program, constant, size, time_limit_s, relax)


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
