"""Has the compiled parts of placement ready before the first decision: compiling takes many seconds, once a machine.

``python -m meshmoe.placement.live.warm`` does it in a process of its own, so that a serving one is not slowed down.
Only compiling is of low priority: to find that all is compiled takes a second of CPU, which took a low priority a
minute on a busy box.
"""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import networkx as nx
import numpy as np

from meshmoe.core.ids import NodeId
from meshmoe.placement.policies.negotiated import Negotiated
from meshmoe.placement.trace import Trace, decode_steps, prefill_steps
from meshmoe.placement.world import ModelShape, NodeSpec, build_world

QUICK_S = 2.0
"""CPU time that this process has at the priority of its parent: enough where everything is compiled."""


def warm_up() -> None:
    """Decide something tiny. Later calls find the compiled code in numba's cache."""
    rng = np.random.default_rng(0)
    names = [NodeId(name) for name in "abc"]  # two bargain, and one is a bystander
    graph: nx.Graph[NodeId] = nx.path_graph(names)
    for _, _, edge in graph.edges(data=True):
        edge.update(rtt_s=1e-3, rate_bytes_per_s=1e7)
    traces = []
    for _ in names:
        sets = rng.integers(0, 4, (16, 2, 2))
        traces.append(Trace(decode_steps(sets, 1.0), prefill_steps([sets], 1.0, 4)))
    specs = {node: NodeSpec(5000, call_s=1e-4) for node in names}
    Negotiated().place(build_world(ModelShape(np.full((2, 4), 1000), 64), graph, specs, traces))


def _give_way() -> None:
    os.nice(10)


if __name__ == "__main__":
    signal.signal(signal.SIGPROF, lambda *_: _give_way())
    signal.setitimer(signal.ITIMER_PROF, QUICK_S)
    with Path(__file__).open("rb") as source:
        fcntl.flock(source, fcntl.LOCK_EX)  # several nodes of one box: one compiles, the others find it done
        warm_up()
