"""How frames travel between nodes: ZeroMQ on trio, in memory, and impaired by an emulated link."""
