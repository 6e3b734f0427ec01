"""One custody machine among others that exist only as entries of gossip."""

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody import (
    DEFAULT,
    CustodyMachine,
    Dropped,
    Life,
    OnDisk,
    Tell,
    UnitLoaded,
    UnitOpened,
    ViewChanged,
    stamp_of,
)
from meshmoe.custody.claims import Claim
from meshmoe.custody.effects import Drop, LoadUnit, OpenUnit
from meshmoe.gossip import Holdings, Load, NodeInfo, NodeView
from meshmoe.membership import Received, Send, Tick

ME = NodeId("me")
SIZE = 1000
DIGEST = "5a" * 20


def experts(count):
    return {ExpertId(0, index): SIZE for index in range(count)}


def view(name, *, capacity=10, claims=None, free=0, stores=False, state="serving", generation=7, copies=()):
    """What ``name`` tells: ``claims`` is slot by expert index; it holds what it claims, and ``copies``."""
    claims = claims or {}
    stamps = {index: stamp_of(slot, Claim(1, NodeId(name), generation)) for index, slot in claims.items()}
    info = NodeInfo(state, Endpoints("10.0.0.1", 7337), "test", DIGEST, capacity * SIZE, stores_model=stores)
    return NodeView(
        NodeId(name),
        generation,
        info=info,
        load=Load(free * SIZE, len(claims) * SIZE),
        holdings={0: Holdings.of(0, {*claims, *copies}).resident},
        claims={0: stamps},
    )


class Alone:
    """The machine, its disk and memory, which work at once; what it sends goes nowhere but into `sent`."""

    def __init__(self, count, *, capacity, on_disk=None, sizes=None):
        """``sizes`` are those of single experts, by index, where they are not `SIZE`."""
        self.now = 100.0
        self.experts = experts(count) | {ExpertId(0, index): size for index, size in (sizes or {}).items()}
        self.machine = CustodyMachine(DEFAULT, Life(ME, 9), DIGEST, self.experts, capacity * SIZE, None, self.now)
        self.effects = []
        stored = range(count) if on_disk is None else on_disk
        self.stored = {ExpertId(0, index) for index in stored}
        self.feed(OnDisk(frozenset(self.stored)))

    def feed(self, event):
        for effect in self.machine.handle(event, self.now):
            self.effects.append(effect)
            match effect:
                case OpenUnit(expert=expert):
                    size = self.experts[expert]
                    self.feed(UnitOpened(expert, size if expert in self.stored else 0, size))
                case LoadUnit(expert=expert):
                    self.feed(UnitLoaded(expert))
                case Drop(expert=expert):
                    self.feed(Dropped(expert))

    def see(self, *views):
        self.feed(ViewChanged({one.node: one for one in views}))

    def wait(self, duration_s):
        end_s = self.now + duration_s
        while (when_s := self.machine.next_deadline()) <= end_s:
            self.now = max(self.now, when_s)
            self.feed(Tick())
        self.now = end_s

    def hear(self, sender, message, generation=7):
        self.feed(Received(NodeId(sender), generation, message))

    def sent(self, kind):
        return [(e.peer, e.message) for e in self.effects if isinstance(e, Send) and isinstance(e.message, kind)]

    def of(self, kind):
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def told(self):
        """The claims of layer 0 as they were published last."""
        return self.of(Tell)[-1].claims[-1].epoch_of()
