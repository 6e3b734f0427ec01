"""Paths over several hops, and what counts as a placement."""

import networkx as nx
import numpy as np
import pytest

from meshmoe.core.config import parse_topology
from meshmoe.placement.world import build_world, graph_of
from tests.placement.worlds import small_world


def test_a_line_of_nodes_adds_up_round_trips_and_bytes():
    world = small_world(nodes=3, links=[(0, 1, 1.0), (1, 2, 3.0)])
    assert world.rtt_s[0, 2] == pytest.approx(4e-3)
    assert world.byte_s[0, 2] == pytest.approx(2e-7)
    assert world.near.tolist() == [[False, True, False], [True, False, True], [False, True, False]]
    assert (world.rtt_s == world.rtt_s.T).all()


def test_a_detour_over_fast_links_beats_a_slow_direct_one():
    world = small_world(nodes=3, links=[(0, 1, 1.0), (1, 2, 1.0), (0, 2, 9.0)])
    assert world.rtt_s[0, 2] == pytest.approx(2e-3)
    assert world.near[0, 2]


def test_paths_are_those_of_dijkstra_when_short_enough():
    links = [(0, 1, 2.0), (1, 2, 2.0), (2, 3, 2.0), (0, 4, 5.0), (4, 3, 4.0)]
    world = small_world(nodes=5, links=links)
    graph = nx.Graph()
    graph.add_weighted_edges_from(links)
    exact = dict(nx.all_pairs_dijkstra_path_length(graph))
    for a in range(5):
        for b in range(5):
            assert world.rtt_s[a, b] == pytest.approx(exact[a][b] * 1e-3)


def test_beyond_the_hop_limit_there_is_no_path():
    with pytest.raises(ValueError, match="within 3 links"):
        small_world(nodes=5, links=[(i, i + 1, 1.0) for i in range(4)])


def test_what_is_no_placement_is_refused():
    world = small_world(redundancy=1.25)
    holders = np.zeros((3, 4, 8), bool)
    with pytest.raises(ValueError, match="no holder"):
        world.check(holders)
    with pytest.raises(ValueError, match="capacity"):
        world.check(~holders)


def test_the_graph_of_a_topology_file():
    text = '[nodes.a]\n[nodes.b]\n[[links]]\nbetween = ["a", "b"]\npreset = "wifi"\n'
    graph = graph_of(parse_topology(text, "x.toml"))
    assert graph["a"]["b"]["rtt_s"] == pytest.approx(6e-3)  # 5 ms and 1 ms of jitter at most each way
    world = small_world(nodes=2)
    named = dict(zip(["a", "b"], world.specs, strict=True))
    assert build_world(world.shape, graph, named, world.traces).rtt_s[0, 1] == pytest.approx(6e-3)
