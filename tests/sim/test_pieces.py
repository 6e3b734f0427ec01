"""Pieces are told in the order in which they were asked for, whatever order they come in."""

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody import PieceArrived, RequestPiece
from meshmoe.sim.pieces import PiecesInOrder

EXPERT, PEER = ExpertId(0, 1), NodeId("a")


def came(pieces, offset):
    return [piece.offset for piece in pieces.arrived(PieceArrived(EXPERT, PEER, offset, 10))]


def asked(pieces, *offsets):
    for offset in offsets:
        pieces.asked(RequestPiece(EXPERT, PEER, offset, 10))


def test_early_pieces_wait():
    pieces = PiecesInOrder()
    asked(pieces, 0, 10, 20)
    assert came(pieces, 20) == []
    assert came(pieces, 0) == [0]
    assert came(pieces, 10) == [10, 20]
    assert came(pieces, 10) == [], "a second time"


def test_what_was_asked_for_again_is_waited_for_again():
    pieces = PiecesInOrder()
    asked(pieces, 0, 10, 20)
    assert came(pieces, 10) == []
    asked(pieces, 0, 10)
    assert came(pieces, 20) == []
    assert came(pieces, 0) == [0], "the piece of before is forgotten"
    assert came(pieces, 10) == [10]
