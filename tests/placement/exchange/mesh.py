"""Machines on a network that loses, repeats and reorders, with gossip that comes late; everything is seeded."""

import heapq
import itertools
import random

import msgspec
import numpy as np

from meshmoe.placement.cost import mesh_cost
from meshmoe.placement.exchange import (
    EXCHANGE_MESSAGES,
    ExchangeConfig,
    ExchangeMachine,
    Heard,
    Links,
    OwnTrace,
    PeerPlan,
    PeersChanged,
    PlanChanged,
    SendTo,
    Wake,
)
from meshmoe.placement.exchange.machine import _Bound
from meshmoe.placement.seed import guardian_owners

_DECODER = msgspec.msgpack.Decoder(EXCHANGE_MESSAGES[0] | EXCHANGE_MESSAGES[1] | EXCHANGE_MESSAGES[2])
GOSSIP_S = 0.5


class Mesh:
    def __init__(self, world, seed=0, *, loss=0.0, repeats=0.0, delay_s=0.05, noise=0.0, config=None, costs=True):
        self.world, self.rng = world, random.Random(seed)
        self.loss, self.repeats, self.delay_s, self.noise = loss, repeats, delay_s, noise
        self.now, self._queue, self._count = 0.0, [], itertools.count()
        self.gone = set()
        self.changes, self.costs, self.sent = [], [], []
        self._notes_costs = costs
        self._wakes = {}
        owner = guardian_owners(world.shape, world.nodes, world.capacity_bytes)
        self.machines = {
            name: ExchangeMachine(
                config or ExchangeConfig(),
                name,
                world.shape,
                world.specs[i],
                world.traces[i],
                owner == i,
                owner == i,
                0,
                random.Random(f"{seed}/{name}"),
                0.0,
            )
            for i, name in enumerate(world.nodes)
        }
        row_s = np.array([spec.row_s for spec in world.specs])
        self.links = Links(world.nodes, world.call_s(1.0), world.byte_s, row_s, world.near)
        self._demand = {
            name: trace.demand(world.shape.experts) for name, trace in zip(world.nodes, world.traces, strict=True)
        }
        self._at(GOSSIP_S, "gossip", None)
        self.gossip()

    def _at(self, when, kind, what):
        heapq.heappush(self._queue, (when, next(self._count), kind, what))

    def plan_of(self, name):
        plan = self.machines[name].plan
        noise = np.exp(np.random.default_rng(self.rng.getrandbits(32)).normal(0, self.noise, self._demand[name].shape))
        return PeerPlan(plan.version, plan.held.copy(), plan.owned.copy(), self._demand[name] * noise)

    def gossip(self):
        """Every node hears of every other's plan, as it is now; messages overtake it meanwhile."""
        plans = {name: self.plan_of(name) for name in self.machines if name not in self.gone}
        for name in plans:
            self.tell(name, PeersChanged({peer: plan for peer, plan in plans.items() if peer != name}, self.links))

    def tell(self, name, event):
        machine = self.machines[name]
        effects = machine.handle(event, self.now)
        self._wakes[name] = machine.next_deadline(), machine.quiet, isinstance(machine._exchange, _Bound)
        for effect in effects:
            if isinstance(effect, SendTo):
                self.post(name, effect)
            elif isinstance(effect, PlanChanged):
                self.changes.append((self.now, name, effect))
                self._note_cost()

    def post(self, sender, effect):
        self.sent.append((sender, effect.peer, effect.message))
        data = msgspec.msgpack.encode(effect.message)
        for _ in range(1 + (self.rng.random() < self.repeats)):
            if self.rng.random() >= self.loss:
                self._at(self.now + self.rng.uniform(0.1, 2.0) * self.delay_s, "message", (sender, effect.peer, data))

    def bound(self):
        return [m for name, m in self.machines.items() if name not in self.gone and isinstance(m._exchange, _Bound)]

    def _note_cost(self):
        if self._notes_costs and not self.bound():
            self.costs.append(mesh_cost(self.world, self.holders()))

    def holders(self):
        return np.stack([machine.plan.held for machine in self.machines.values()])

    def owners(self):
        return np.stack([machine.plan.owned for machine in self.machines.values()])

    def demand_changed(self, traces):
        for name, trace in zip(self.machines, traces, strict=True):
            self._demand[name] = trace.demand(self.world.shape.experts)
            self.tell(name, OwnTrace(trace))

    def quiet(self):
        return all(quiet and not bound for name, (_, quiet, bound) in self._wakes.items() if name not in self.gone)

    def run(self, until_s):
        """Run until a time, or until all are quiet and no message is under way; returns whether they are."""
        while self.now < until_s:
            wakes = [(max(self.now, w[0]), name) for name, w in self._wakes.items() if name not in self.gone]
            wake_s, name = min(wakes)
            if self.quiet() and not any(kind == "message" for _, _, kind, _ in self._queue):
                return True
            if self._queue and self._queue[0][0] <= wake_s:
                self.now, _, kind, what = heapq.heappop(self._queue)
                if kind == "gossip":
                    self.gossip()
                    self._at(self.now + GOSSIP_S, "gossip", None)
                elif what[0] not in self.gone and what[1] not in self.gone:
                    self.tell(what[1], Heard(what[0], _DECODER.decode(what[2])))
            else:
                self.now = wake_s
                self.tell(name, Wake())
        return False
