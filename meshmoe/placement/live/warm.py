"""Has the compiled parts of placement ready before the first decision: compiling takes many seconds, once a machine.

``python -m meshmoe.placement.live.warm`` does it in a process of its own, so that a serving one is not slowed down.
"""

from __future__ import annotations

import fcntl
import os
import random
from pathlib import Path

import numpy as np

from meshmoe.core.ids import NodeId
from meshmoe.placement.exchange import (
    ExchangeConfig,
    ExchangeMachine,
    Heard,
    Links,
    PeerPlan,
    PeersChanged,
    SendTo,
    Wake,
)
from meshmoe.placement.trace import Trace, decode_steps, prefill_steps
from meshmoe.placement.world import ModelShape, NodeSpec


def warm_up() -> None:
    """Let two nodes exchange something tiny. Later calls find the compiled code in numba's cache."""
    rng = np.random.default_rng(0)
    shape, names = ModelShape(np.full((2, 6), 1000), 64), (NodeId("a"), NodeId("b"))
    apart = ~np.eye(2, dtype=bool)
    links = Links(names, 1e-3 * apart, 1e-7 * apart, np.zeros(2), apart)
    machines, owned = {}, np.zeros((2, 2, 6), bool)
    owned[0, 0] = owned[1, 1] = True
    for i, name in enumerate(names):
        sets = rng.integers(0, 6, (64, 2, 2))
        trace = Trace(decode_steps(sets, 1.0), prefill_steps([sets], 1.0, 6))
        spec = NodeSpec(9000, call_s=1e-4, expert_s=1e-5, row_s=1e-6)
        config = ExchangeConfig(pause_s=1.0, gain_min=0.0)
        machine = ExchangeMachine(config, name, shape, spec, trace, owned[i], owned[i], 0, random.Random(i), 0.0)
        machines[name] = machine, trace.demand(6)
    now = 0.0
    while now < 20.0:
        now += 1.0
        for i, name in enumerate(names):
            machine, (peer, demand) = machines[name][0], (machines[names[1 - i]][0].plan, machines[names[1 - i]][1])
            view = PeerPlan(peer.version, peer.held.copy(), peer.owned.copy(), demand)
            machine.handle(PeersChanged({names[1 - i]: view}, links), now)
            mail = [(names[1 - i], name, effect) for effect in machine.handle(Wake(), now)]
            while mail:
                to, sender, effect = mail.pop()
                if isinstance(effect, SendTo):
                    answers = machines[to][0].handle(Heard(sender, effect.message), now)
                    mail += [(sender, to, answer) for answer in answers]


if __name__ == "__main__":
    os.nice(10)
    with Path(__file__).open("rb") as source:
        fcntl.flock(source, fcntl.LOCK_EX)  # several nodes of one box: one compiles, the others find it done
        warm_up()
