"""One gossip machine, driven by hand."""

from random import Random

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import NodeId
from meshmoe.gossip import DEFAULT, Gossip, Holdings
from meshmoe.gossip.messages import Entry, GossipPush, NodeDelta
from meshmoe.gossip.values import pack
from meshmoe.membership import Member, MemberAlive, MemberState, Received, Send, Tick

HERE = Endpoints("10.0.0.1", 7000)


ME, GENERATION = NodeId("me"), 1000


A, B, C = (NodeId(name) for name in "abc")


def member(node, state=MemberState.ALIVE, generation=1):
    return Member(NodeId(node), generation, 0, state, HERE, 0.0)


def holdings(node, *indices, version=1, after=0, upto=None, generation=1, layer=0):
    entry = Entry(f"holdings/{layer}", version, pack(Holdings.of(layer, indices)))
    return NodeDelta(node, generation, 0, after, upto or version, [entry])


class Bench:
    """A machine and its clock."""

    def __init__(self, *peers, config=DEFAULT):
        self.now = 50.0
        self.machine = Gossip(config, ME, GENERATION, Random(1), self.now)
        for peer in peers:
            self.do(MemberAlive(member(peer)))

    @property
    def view(self):
        return self.machine.view

    def do(self, event):
        return self.machine.handle(event, self.now)

    def hear(self, sender, message):
        return self.do(Received(NodeId(sender), 1, message))

    def run(self, duration_s):
        effects, end_s = [], self.now + duration_s
        while self.machine.next_deadline() <= end_s:
            self.now = max(self.now, self.machine.next_deadline())
            effects += self.do(Tick())
        self.now = end_s
        return effects


def sent(effects, kind=GossipPush, peer=None):
    return [
        e.message for e in effects if isinstance(e, Send) and isinstance(e.message, kind) and peer in (None, e.peer)
    ]


def keys(messages):
    return [entry.key for message in messages for delta in message.deltas for entry in delta.entries]
