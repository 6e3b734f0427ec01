"""Random faults, then quiet, then everything must be as if nothing had happened.

Each seed draws its own fault rates and schedule: loss, duplication, delay, partitions of any shape, one-way breaks,
crashes, restarts, pauses, farewells, while nodes go on telling news. After the faults the mesh must converge in a
bounded time, and at no time may anybody see what was never told. Replay a seed by its test id.
"""

import sys

import pytest

from meshmoe.core.ids import ExpertId
from meshmoe.gossip import DEFAULT, Holdings, Load, Publish, Withdraw
from meshmoe.membership import Doubted, NameConflict
from tests.membership.virtual import Path, VirtualNet

FAULTS_S = 60.0
QUIET_S = 45.0
"""Bound for L1: longest suspicion, then probing of the dead, then three exchanges of tables."""


class Chaos:
    """One seed's run."""

    def __init__(self, seed):
        self.net = net = VirtualNet(seed, gossip=DEFAULT)
        self.rng = net.rng
        self.told = {}
        self.restarted = []
        for node in net.mesh(self.rng.randint(2, 9), settle_s=15):
            self.speak(node)
        self.rates = {fault: self.rng.random() ** 2 for fault in self.FAULTS}
        net.at(0, self.step)

    FAULTS = ("path", "partition", "one_way", "crash", "restart", "pause", "leave", "speak", "remove", "doubt", "heal")

    def run(self):
        self.net.run(FAULTS_S)
        self.over = True
        self.net.heal()
        self.net.path = Path()
        for node in self.net.nodes.values():
            if node.running and node.paused:
                self.net.resume(node)
        # Whom a restarted node was introduced to may have died with the news: a real node asks its seeds until it is
        # known.
        active = self.net.active()
        seed = next((node for node in active if node not in self.restarted), active[0])
        for node in self.restarted:
            if node.running and node is not seed:
                self.net.introduce(node, seed)
        assert self.net.run(QUIET_S, until=self.settled), self.complaint()

    over = False

    def step(self):
        if self.over:
            return
        self.net.at(self.rng.expovariate(1.0), self.step)
        fault = self.rng.choices(self.FAULTS, [self.rates[fault] + 0.02 for fault in self.FAULTS])[0]
        getattr(self, fault)()
        self.check()

    def some(self):
        return self.rng.choice(self.net.active()) if self.net.active() else None

    def path(self):
        rng = self.rng
        self.net.path = Path(
            rng.choice([0.0005, 0.02]), rng.choice([0.001, 0.2]), rng.random() ** 2 * 0.7, rng.random() / 4
        )

    def partition(self):
        nodes = list(self.net.nodes.values())
        self.rng.shuffle(nodes)
        cut = self.rng.randint(0, len(nodes))
        self.net.partition(nodes[:cut], nodes[cut:])

    def one_way(self):
        deaf = self.some()
        if deaf is not None:
            self.net.blocked = lambda sender, receiver: receiver == deaf.node

    def heal(self):
        self.net.heal()

    def crash(self):
        if len(self.net.active()) > 2:
            self.net.crash(self.some())

    def restart(self):
        gone = [node for node in self.net.nodes.values() if not node.running]
        members = self.net.active()
        if gone and members:
            again = self.net.start(self.rng.choice(gone).node, same_place=self.rng.random() < 0.5)
            self.net.introduce(again, self.rng.choice(members))
            self.restarted.append(again)
            self.speak(again)

    def pause(self):
        node = self.some()
        if node is None:
            return
        self.net.pause(node)

        def resume():
            if node.running and node.paused:
                self.net.resume(node)

        self.net.at(self.rng.uniform(0.3, 25), resume)

    def leave(self):
        if len(self.net.active()) > 2 and self.rng.random() < 0.3:
            self.net.leave(self.some())

    def speak(self, node=None):
        node = node or self.some()
        if node is not None:
            held = frozenset(self.rng.sample(range(20), self.rng.randint(0, 5)))
            layer = self.rng.randrange(3)
            self.told.setdefault((node.node, node.generation, layer), []).append(held)
            self.net.tell(node, Publish((Load(self.rng.randrange(99), 0), Holdings.of(layer, held))))

    def remove(self):
        node = self.some()
        if node is not None:
            self.net.tell(node, Withdraw((f"holdings/{self.rng.randrange(3)}",)))

    def doubt(self):
        node = self.some()
        if node is not None and node.membership.members:
            self.net.feed(node, Doubted(self.rng.choice(sorted(node.membership.members))))

    def check(self):
        """Nobody sees what was never told, and each view's index fits its nodes."""
        for node in self.net.active():
            for other in node.gossip.view.nodes.values():
                for layer, bitmap in other.holdings.items():
                    held = frozenset(Holdings(layer, bitmap).indices())
                    assert held in self.told[other.node, other.generation, layer]
                    assert all(other.node in node.gossip.view.holders(ExpertId(layer, index)) for index in held)

    def settled(self):
        return self.net.converged() and self.views_equal()

    def views_equal(self):
        truth = {node.node: dict(node.gossip._own.values()) for node in self.net.active()}
        for node in self.net.active():
            if node.gossip.view.nodes.keys() != truth.keys() or node.gossip.view.disagreeing():
                return False
            for name, values in truth.items():
                replica = node.gossip._store.replicas.get(name)
                if replica is None or dict(replica.values()) != values:
                    return False
        return True

    def complaint(self):
        lives = {node.node: node.generation for node in self.net.active()}
        lines = [f"seed {self.net.seed}: not settled; living: {lives}"]
        for node in self.net.active():
            states = {m.node: (m.generation, m.state.name) for m in node.membership.members.values()}
            lines.append(f"{node.node} believes {states}, disagrees with {node.gossip.view.disagreeing()}")
        return "\n".join(lines)


@pytest.mark.parametrize("seed", range(24))
def test_faults_then_quiet_then_all_agree(seed):
    chaos = Chaos(seed)
    chaos.run()
    chaos.check()
    assert not [entry for entry in chaos.net.seen(NameConflict) if entry.effect.yields]


def main():
    """Many more seeds: ``.venv/bin/python -m tests.gossip.test_chaos 1000``."""
    for seed in range(int(sys.argv[1])):
        try:
            test_faults_then_quiet_then_all_agree(seed)
        except AssertionError as error:
            sys.stdout.write(f"seed {seed}: {error}\n")


if __name__ == "__main__":
    main()
