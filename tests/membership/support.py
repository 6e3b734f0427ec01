"""One membership machine, driven by hand: a machine with its clock, and peers that answer."""

from random import Random

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import NodeId
from meshmoe.membership import LAN, Learned, Membership, MemberState, Received, Send, Tick
from meshmoe.membership.messages import MemberNews, MemberUpdate, Probe, ProbeAck

ALIVE, SUSPECT, DEAD, LEFT = MemberState


ME, GENERATION = NodeId("me"), 1000


A, B, C, D, E = (NodeId(name) for name in "abcde")


def place(port):
    return Endpoints("10.0.0.1", port)


def word(node, state=ALIVE, *, generation=1, incarnation=0, port=1, accusers=()):
    return MemberUpdate(node, generation, incarnation, state, place(port), list(accusers))


class Bench:
    """A machine and its clock."""

    def __init__(self, *members, config=LAN):
        self.now = 50.0
        self.machine = Membership(config, ME, GENERATION, place(9), Random(1), self.now)
        for member in members:
            self.learn(member)

    def do(self, event):
        return self.machine.handle(event, self.now)

    def learn(self, node, generation=1, port=1):
        return self.do(Learned(NodeId(node), generation, place(port)))

    def hear(self, sender, message, generation=1):
        return self.do(Received(NodeId(sender), generation, message))

    def news(self, *updates, sender=A):
        return self.hear(sender, MemberNews(list(updates)))

    def run(self, duration_s, *, answer=lambda peer, message: None):
        """Tick exactly; ``answer`` makes peers' immediate replies."""
        effects, end_s = [], self.now + duration_s
        while self.machine.next_deadline() <= end_s:
            self.now = max(self.now, self.machine.next_deadline())
            pending = self.do(Tick())
            while pending:
                effect = pending.pop(0)
                effects.append(effect)
                reply = answer(effect.peer, effect.message) if isinstance(effect, Send) else None
                if reply is not None:
                    generation = self.machine.members[effect.peer].generation
                    pending += self.hear(effect.peer, reply, generation)
        self.now = end_s
        return effects

    def state(self, node):
        return self.machine.members[node].state


def sent(effects, kind, peer=None):
    return [
        e.message for e in effects if isinstance(e, Send) and isinstance(e.message, kind) and peer in (None, e.peer)
    ]


def kinds(effects):
    return [type(effect) for effect in effects if not isinstance(effect, Send)]


def acks_of(*nodes, incarnation=0):
    """Peers that answer probes."""
    return lambda peer, m: ProbeAck(m.id, incarnation, m.attempt) if isinstance(m, Probe) and peer in nodes else None
