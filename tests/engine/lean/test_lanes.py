"""Two steps are under way at once only where one of them waits for peers."""

from __future__ import annotations

import random

import pytest
import trio

from meshmoe.engine.engine import EngineLimits, open_engine
from meshmoe.engine.lean import scheduler
from meshmoe.engine.lean.halves import Halves
from meshmoe.engine.lean.scheduler import Scheduler
from tests.engine.support import Scattered, complete, edge, edge_pool, subset

RNG = random.Random(8)
WRITERS = [tuple(RNG.randrange(3, 4096) for _ in range(8)) for _ in range(6)]
LONG = [tuple(RNG.randrange(3, 4096) for _ in range(600)) for _ in range(2)]


class Steps:
    """Notes every forward of a scheduler: rows of prompts, whether others wrote meanwhile, how many were under way."""

    def __init__(self, monkeypatch):
        self.under_way = self.most = 0
        self.pieces: list[tuple[int, bool]] = []
        self.seconds: set[tuple[bool, float]] = set()
        forward, within = Scheduler._forward, scheduler.PieceRows.within

        def counted(which, batch, group, pieces):
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            if pieces:
                self.pieces.append((sum(pieces.values()), any(member.writing for member in which._members)))
            try:
                return forward(which, batch, group, pieces)
            finally:
                self.under_way -= 1

        def asked(pieces, seconds, beside):
            self.seconds.add((beside, seconds))
            return within(pieces, seconds, beside)

        monkeypatch.setattr(Scheduler, "_forward", counted)
        monkeypatch.setattr(scheduler.PieceRows, "within", asked)


async def write_and_read(engine):
    """Texts of several requests, with long prompts read while they are written."""
    found = {}

    async def one(prompt, tokens):
        found[prompt] = (await complete(engine, prompt, max_tokens=tokens, ignore_eos=True)).ids

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            for prompt in WRITERS:
                nursery.start_soon(one, prompt, 60)
            while engine.stats().tokens_written < 4 * len(WRITERS):
                await trio.sleep(0.001)
            for prompt in LONG:
                nursery.start_soon(one, prompt, 2)
    return found


@pytest.fixture(scope="module")
def expected():
    async def main():
        async with open_engine(edge()[1], edge_pool(), limits=EngineLimits(active_max=1)) as engine:
            return await write_and_read(engine)

    return trio.run(main)


def test_prompts_are_read_between_steps_that_write_and_never_within_them(monkeypatch, expected):
    async def main():
        async with open_engine(edge()[1], edge_pool()) as engine:
            return await write_and_read(engine)

    steps = Steps(monkeypatch)
    assert trio.run(main) == expected
    assert steps.most == 1
    beside = [rows for rows, writing in steps.pieces if writing]
    assert sum(beside) > 100, "prompts were read beside writers"
    assert len(beside) > 10, "in short pieces"
    assert all(seconds < scheduler.READ_ALONE_S for beside, seconds in steps.seconds if beside)


def test_where_steps_wait_for_peers_another_goes_on_meanwhile(monkeypatch, expected):
    model, whole = edge()[1], edge_pool()
    chance = random.Random(3)
    here = subset(whole, [expert for expert in model.experts if chance.random() < 0.5])

    async def main():
        async with (
            open_engine(model, whole) as peer,
            open_engine(model, here, Scattered([peer], 0.005)) as engine,
        ):
            return await write_and_read(engine)

    steps = Steps(monkeypatch)
    assert trio.run(main) == expected
    assert steps.most == scheduler.LANES


def test_those_that_do_not_write_in_halves_write_together_whenever_they_came(monkeypatch, expected):
    model, whole = edge()[1], edge_pool()
    chance = random.Random(3)
    here = subset(whole, [expert for expert in model.experts if chance.random() < 0.5])
    monkeypatch.setattr(Halves, "now", False)
    writing, overlapping, sizes = 0, 0, []
    write = Scheduler._write

    def counted(which, batch, group):
        nonlocal writing, overlapping
        writing += 1
        overlapping += writing > 1
        sizes.append(len(group))
        try:
            return write(which, batch, group)
        finally:
            writing -= 1

    monkeypatch.setattr(Scheduler, "_write", counted)

    async def main():
        async with (
            open_engine(model, whole) as peer,
            open_engine(model, here, Scattered([peer], 0.002)) as engine,
        ):
            return await write_and_read(engine)

    assert trio.run(main) == expected
    assert sizes.count(len(WRITERS)) > 5, "most of the time all are writing"
    assert overlapping <= 2, "but where a step took longer than they wait for each other"


def test_a_step_that_is_stuck_does_not_keep_others_from_writing(monkeypatch):
    model, whole = edge()[1], edge_pool()
    slow, free = WRITERS[0], trio.Event()
    here = subset(whole, [expert for expert in model.experts if expert.layer])
    monkeypatch.setattr(Halves, "now", False)

    class Stuck(Scattered):
        """Answers, once asked by the first writer's step, when the others have ended."""

        async def compute(self, call):
            if call.decode and not self.calls:
                self.calls.append(call)
                await free.wait()
            return await super().compute(call)

    async def main():
        async with open_engine(model, whole) as peer, open_engine(model, here, Stuck([peer], 0.0)) as engine:
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(complete, engine, slow)
                    while not engine.stats().tokens_written:
                        await trio.sleep(0.001)
                    await complete(engine, WRITERS[1])
                    free.set()

    trio.run(main)
