"""Planners on a network that loses and delays, with gossip that comes late; everything is seeded."""

import heapq
import itertools
import random

import msgspec
import numpy as np

from meshmoe.core.endpoints import Endpoints
from meshmoe.gossip import Demand, Links, NodeInfo, NodeView, Planned, PlanStamp
from meshmoe.placement.cost import mesh_cost
from meshmoe.placement.exchange import Heard, OwnTrace, PlanChanged, SendTo, Wake
from meshmoe.placement.exchange import Links as Times
from meshmoe.placement.live import DEFAULT, Planner, Seen, Settled, Tell
from meshmoe.placement.live.demand import DemandNews

DIGEST = "5a" * 20
STEP_S = 0.05


class Mesh:
    """All nodes of a world, started; they have no demand before `ask`."""

    def __init__(self, world, seed=0, *, loss=0.0, delay_s=0.05, gossip_s=0.5, config=DEFAULT):
        self.world, self.rng, self.config = world, random.Random(seed), config
        self.loss, self.delay_s, self.gossip_s = loss, delay_s, gossip_s
        self.now, self.count = 0.0, itertools.count()
        self.mail, self.views, self.planners, self.told = [], {}, {}, {}
        self.settled, self.changes = {}, []
        self.hidden = set()
        for name in world.nodes:
            self.start(name)

    def start(self, name):
        i = self.world.nodes.index(name)
        rng = random.Random(self.rng.random())
        first = next(self.count) << 32
        self.planners[name] = Planner(self.config, name, self.world.shape, self.world.specs[i], first, rng, self.now)
        info = NodeInfo("serving", Endpoints("10.0.0.1", 7337), "test", DIGEST, self.world.specs[i].capacity_bytes)
        self.views[name] = NodeView(name, first, info=info)
        self.settled.pop(name, None)

    def stop(self, name):
        del self.planners[name], self.views[name]
        self.settled.pop(name, None)

    def ask(self, traces=None):
        """Every node gets demand."""
        for name, trace in zip(self.world.nodes, traces or self.world.traces, strict=True):
            if name in self.planners:
                news = DemandNews(*self.world.shape.expert_bytes.shape)
                self.change(name, news.of(trace.demand(self.world.shape.experts), 1 << 20))
                self.feed(name, OwnTrace(trace))

    def run(self, seconds, until=lambda: False):
        """Let time pass; returns when ``until`` held or time was up."""
        end_s = self.now + seconds
        while self.now < end_s and not until():
            self.now += STEP_S
            while self.mail and self.mail[0][0] <= self.now:
                _, _, act = heapq.heappop(self.mail)
                act()
            for name, planner in list(self.planners.items()):
                if planner.next_deadline() <= self.now:
                    self.feed(name, Wake())
        return self.now

    def feed(self, name, event):
        for effect in self.planners[name].handle(event, self.now):
            match effect:
                case SendTo(peer=peer, message=message):
                    if self.rng.random() >= self.loss:
                        self.later(self.delay_s * self.rng.uniform(0.5, 1.5), peer, Heard(name, message))
                case Tell(values=values):
                    self.change(name, values)
                case Settled():
                    self.settled[name] = effect
                case PlanChanged():
                    self.changes.append((self.now, name, effect))

    def change(self, name, values):
        view = self.views[name]
        for value in values:
            match value:
                case PlanStamp():
                    view = msgspec.structs.replace(view, stamp=value)
                case Planned():
                    view = msgspec.structs.replace(view, planned={**view.planned, value.layer: value})
                case Demand():
                    view = msgspec.structs.replace(view, demand={**view.demand, value.layer: value.rates})
                case Links():
                    pass
        self.views[name] = view
        for peer in self.planners:
            if peer != name:
                self.later(self.gossip_s * self.rng.uniform(0.2, 1.5), peer, None)

    def later(self, seconds, name, event):
        def act():
            if name in self.planners:
                self.feed(name, self.seen_by(name) if event is None else event)

        heapq.heappush(self.mail, (self.now + seconds, next(self.count), act))

    def look(self):
        """Everybody sees who is there."""
        for name in list(self.planners):
            self.feed(name, self.seen_by(name))

    def seen_by(self, name):
        world = self.world
        shown = {node for node in self.views if (name, node) not in self.hidden}
        places = [i for i, node in enumerate(world.nodes) if node in shown]
        grid = np.ix_(places, places)
        row_s = np.array([spec.row_s for spec in world.specs])
        times = Times(
            tuple(world.nodes[i] for i in places),
            world.call_s(1.0)[grid],
            world.byte_s[grid],
            row_s[places],
            world.near[grid],
        )
        return Seen({node: self.views[node] for node in shown - {name}}, times)

    # -- what came of it ------------------------------------------------------------

    def owners(self):
        return sum(planner.machine.plan.owned.astype(int) for planner in self.planners.values() if planner.machine)

    def is_covered(self):
        return all(planner.awake for planner in self.planners.values()) and bool(
            (self.owners() == self.world.shape.exists).all()
        )

    def all_settled(self):
        return self.settled.keys() == self.planners.keys()

    def cost(self):
        empty = np.zeros(self.world.shape.expert_bytes.shape, bool)
        planners = [self.planners.get(node) for node in self.world.nodes]
        return mesh_cost(self.world, np.stack([p.machine.plan.held if p and p.machine else empty for p in planners]))
