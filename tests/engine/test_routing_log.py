import numpy as np

from meshmoe.engine.routing_log import TOKENS_MAX, RoutingLog


def test_passes_are_taken_once_in_order():
    log = RoutingLog()
    log.add(np.array([[[1, 2], [3, 4]]]), decode=True)
    log.add(np.zeros((5, 2, 2), np.int64), decode=False)
    first, second = log.take()
    assert first.decode and first.sets.tolist() == [[[1, 2], [3, 4]]]
    assert not second.decode and second.sets.shape == (5, 2, 2)
    assert first.at_s <= second.at_s and log.take() == []


def test_layers_of_unequal_width_are_filled_up():
    log = RoutingLog()
    log.add_layers([np.array([[1, 2], [0, 3]]), np.array([[5], [6]])], decode=False)
    assert log.take()[0].sets.tolist() == [[[1, 2], [5, -1]], [[0, 3], [6, -1]]]


def test_an_unfinished_pass_is_left_out():
    log = RoutingLog()
    log.add_layers([np.zeros((1, 2), np.int64), None], decode=True)
    log.add_layers([np.zeros((1, 2), np.int64), np.zeros((3, 2), np.int64)], decode=True)
    assert log.take() == []


def test_the_oldest_are_forgotten():
    log = RoutingLog()
    for number in range(5):
        log.add(np.full((TOKENS_MAX // 4, 1, 1), number), decode=False)
    assert [int(routed.sets[0, 0, 0]) for routed in log.take()] == [1, 2, 3, 4]
