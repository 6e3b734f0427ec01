"""The runtime: wires the machines to sockets, time and weights, and lives a node's life."""
