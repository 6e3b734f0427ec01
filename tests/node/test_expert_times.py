import trio

from meshmoe.core.ids import ExpertId
from meshmoe.engine.engine import open_engine
from meshmoe.node.expert_times import ExpertTimes, measure_experts
from tests.engine.support import edge, edge_pool, subset


def test_a_call_takes_longer_than_a_further_expert_and_that_longer_than_a_row():
    async def main():
        async with open_engine(edge()[1], edge_pool()) as engine:
            times = await measure_experts(engine)
            assert times.call_s > times.expert_s > times.row_s >= 0

    trio.run(main)


def test_of_two_measurements_the_shorter_times_count():
    assert ExpertTimes(3.0, 1.0, 0.2).least(ExpertTimes(2.0, 1.5, 0.1)) == ExpertTimes(2.0, 1.0, 0.1)


def test_a_single_expert_is_enough():
    async def main():
        async with open_engine(edge()[1], subset(edge_pool(), [ExpertId(3, 7)])) as engine:
            times = await measure_experts(engine)
            assert times.call_s == times.expert_s > 0

    trio.run(main)
