"""A seeded, deterministic simulator of whole meshes.

It drives the product's membership, gossip and custody machines as the node drives them, through a virtual network,
virtual processes and virtual time; weights are sizes.

`run_seed` lets a mesh form, lets faults happen (the safety phase), heals everything, and demands that the mesh settles
(the liveness phase). All chance comes from the seed, so a failure is replayed by its number.
"""

from meshmoe.sim.checker import InvariantError
from meshmoe.sim.seed import Outcome, run_seed

__all__ = ["InvariantError", "Outcome", "run_seed"]
