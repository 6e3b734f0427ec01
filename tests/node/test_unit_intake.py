"""Pieces of weights, whose requests and answers may overtake each other, reach custody in the order asked for."""

import random
import threading

import pytest
import torch
import trio
import trio.testing

from meshmoe.core.errors import PeerError
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody import PieceArrived, PieceFailed, RequestPiece, UnitLoaded
from meshmoe.engine.pool import ExpertPool
from meshmoe.node.unit_intake import UnitIntake

EXPERT, OTHER, PEER = ExpertId(0, 1), ExpertId(0, 2), NodeId("peer")
PIECE = 1 << 20


class Source:
    def unit_bytes(self, unit):
        return 64 * PIECE


class Client:
    """Answers after a while drawn at random; some pieces never."""

    def __init__(self, seed, failing=()):
        self.transfers = {}
        self._rng, self._failing = random.Random(seed), failing

    async def fetch_piece(self, peer, unit, offset, total_bytes):
        await trio.sleep(self._rng.random())
        if offset in self._failing:
            raise PeerError("lost")
        return bytes(PIECE)


def outcomes(seed, offsets, failing=()):
    """What custody is told of two experts, whose pieces are asked for in turns."""
    told = []

    async def main():
        intake = UnitIntake(Source(), None, Client(seed, failing), {}, torch.float32, told.append)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(intake.run)
            await trio.testing.wait_all_tasks_blocked()
            for offset in offsets:
                for expert in (EXPERT, OTHER):
                    intake.request(RequestPiece(expert, PEER, offset, PIECE))
            await trio.sleep(2)
            assert not intake._told, "nothing is kept of what is over"
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return {expert: [event for event in told if event.expert == expert] for expert in (EXPERT, OTHER)}


@pytest.mark.parametrize("seed", range(5))
def test_pieces_are_told_in_the_order_in_which_they_were_asked_for(seed):
    offsets = [number * PIECE for number in range(6)]
    for expert, events in outcomes(seed, offsets).items():
        assert events == [PieceArrived(expert, PEER, offset, PIECE) for offset in offsets]


def test_a_piece_that_fails_is_told_in_its_place():
    offsets = [number * PIECE for number in range(4)]
    for expert, events in outcomes(7, offsets, failing=(PIECE,)).items():
        assert [type(event) for event in events] == [PieceArrived, PieceFailed, PieceArrived, PieceArrived]
        assert events[1] == PieceFailed(expert, PEER)


def test_weights_go_to_their_place_on_a_thread_of_their_own(monkeypatch):
    # A copy to a card waits for the card; nobody's probes may wait with it.
    class Pool(ExpertPool):
        def placed(self, weights):
            places.append(threading.current_thread())
            return super().placed(weights)

    class Whole(Source):
        def has_expert(self, expert):
            return True

    pool, places, told, weights = Pool(PIECE), [], [], {"down_proj": torch.arange(16.0)}
    monkeypatch.setattr("meshmoe.node.unit_intake.load_expert", lambda source, expert, dtype: weights)

    async def main():
        intake = UnitIntake(Whole(), pool, Client(0), {EXPERT: 64}, torch.float32, told.append)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(intake.run)
            await trio.testing.wait_all_tasks_blocked()
            intake.load(EXPERT)
            while not told:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert told == [UnitLoaded(EXPERT)]
    assert pool.get(EXPERT)["down_proj"].equal(torch.arange(16.0))
    assert places[0] is not threading.current_thread()  # committing looks again, and finds nothing to do
