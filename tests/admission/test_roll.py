"""The roll of members: what gets onto it, what never does, and that all rolls become equal."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmoe.admission import (
    AdmissionRecord,
    MeshSecret,
    Roll,
    RollState,
    SecretStaleError,
    TokenNote,
    admission_proof,
    is_proof_of,
    new_secret,
    ticket_of,
)
from meshmoe.core.ids import NodeId

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
SECRET = MeshSecret(1, bytes(32))
TOKEN = b"12345678"


def key(name: str, life: int = 0) -> bytes:
    return f"{name}{life}".encode().ljust(32, b".")


def record(node: NodeId, /, secret: MeshSecret = SECRET, at_ms: int = 1, life: int = 0, **changes) -> AdmissionRecord:
    ticket = ticket_of(secret, TOKEN, 0)
    fields = {
        "node": node,
        "key": key(node, life),
        "token": TOKEN,
        "expires_s": 0,
        "epoch": secret.epoch,
        "admitted_ms": at_ms,
        "proof": admission_proof(ticket, key(node, life), node),
    }
    return AdmissionRecord(**{**fields, **changes})


def roll(*nodes: NodeId, heard=()) -> Roll:
    made = Roll(RollState(SECRET), lambda node: node in heard)
    for node in nodes:
        assert made.admit(record(node)) is None
    return made


def tell(teller: Roll, hearer: Roll) -> None:
    for news in teller.news():
        hearer.merge(news)


def settle(*rolls: Roll) -> None:
    """Everybody tells everybody until nobody has news."""
    for _ in range(4):
        for teller in rolls:
            for hearer in rolls:
                try:
                    tell(teller, hearer)
                except SecretStaleError:
                    tell(hearer, teller)
    assert len({one.digest() for one in rolls}) == 1


@given(st.binary(min_size=32, max_size=32), st.sampled_from(["a", "b"]), st.integers(0, 255))
def test_a_proof_fits_one_token_one_key_and_one_name(own_key, name, flip):
    ticket = ticket_of(SECRET, TOKEN, 77)
    proof = admission_proof(ticket, own_key, name)
    assert is_proof_of(proof, ticket, own_key, name)
    other_key = bytes([own_key[0] ^ (flip or 1)]) + own_key[1:]
    for other in (
        (ticket_of(SECRET, TOKEN, 78), own_key, name),
        (ticket_of(SECRET, b"87654321", 77), own_key, name),
        (ticket_of(new_secret(), TOKEN, 77), own_key, name),
        (ticket, other_key, name),
        (ticket, own_key, name + "x"),
    ):
        assert not is_proof_of(proof, *other)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"proof": bytes(32)}, "its proof is not one of this mesh"),
        ({"key": key("x")}, "its proof is not one of this mesh"),
        ({"node": "x"}, "its proof is not one of this mesh"),
        ({"expires_s": 9}, "its proof is not one of this mesh"),
        ({"epoch": 2}, "its proof is not one of this mesh"),
    ],
)
def test_without_a_proof_of_its_own_nobody_gets_in(wrong, words):
    made = roll()
    assert words in made.admit(record(A, **wrong))
    assert not made.records


def test_a_token_is_refused_once_it_is_revoked_or_has_expired():
    made = roll()
    note = TokenNote(TOKEN, 1, 0, 100, "a")
    made.note_token(note)
    assert made.objection(ticket_of(SECRET, TOKEN, 100), 99) is None
    assert "expired" in made.objection(ticket_of(SECRET, TOKEN, 100), 101)
    made.note_token(TokenNote(TOKEN, 1, 0, 100, "a", revoked=True))
    made.note_token(note)  # it is never taken back
    assert "revoked" in made.objection(ticket_of(SECRET, TOKEN, 100), 99)
    assert "none that a mesh gives out" in made.objection(ticket_of(SECRET, bytes(8), 0), 99)


def test_a_name_goes_to_another_key_only_when_its_owner_is_not_heard():
    heard = {A}
    made = roll(A, heard=heard)
    assert "is in the mesh already" in made.admit(record(A, at_ms=2, life=1))
    heard.clear()
    assert made.admit(record(A, at_ms=2, life=1)) is None
    assert made.records[A].key == key("a", 1)
    assert "to another key later" in made.admit(record(A, at_ms=1))


def test_one_key_has_one_name():
    made = roll(A)
    proof = admission_proof(ticket_of(SECRET, TOKEN, 0), key("a"), C)
    assert made.admit(record(C, at_ms=5, key=key("a"), proof=proof)) is None
    assert set(made.records) == {C}
    assert "belongs to c" in made.admit(record(A, at_ms=1))


def test_who_is_expelled_stays_out_and_does_not_learn_the_new_secret():
    a, b, out = roll(A, B, C), roll(A, B, C), roll(A, B, C)
    assert a.expel(C) == key("c")
    assert a.secret.epoch == 2
    assert "expelled" in a.admit(record(C, at_ms=9))
    settle(a, b)
    assert set(b.records) == {A, B}
    # The expelled one comes with what it knows: the old secret, itself, and a friend.
    friend = record(NodeId("friend"))
    out.admit(friend)
    for news in out.news():
        with pytest.raises(SecretStaleError):
            b.merge(news)
    assert set(b.records) == {A, B}
    assert b.admit(friend) is not None


def test_a_rotation_is_followed_and_old_tokens_are_void():
    a, b = roll(A, B), roll(A, B)
    a.rotate()
    assert a.admit(record(C)) is not None
    assert b.admit(record(C)) is None  # it has not heard yet
    settle(a, b)
    assert a.secret == b.secret
    assert set(a.records) == {A, B, C}, "who was let in meanwhile stays"
    assert b.admit(record(NodeId("d"))) is not None


def test_a_secret_far_ahead_is_not_taken_from_news():
    a, b = roll(A), roll(A)
    b.adopt(new_secret(1000))
    for news in b.news():
        with pytest.raises(SecretStaleError):
            a.merge(news)
    assert a.secret == SECRET


def test_state_comes_back_from_disk():
    a = roll(A, B)
    a.expel(B)
    a.note_token(TokenNote(TOKEN, 2, 0, 0, "a", revoked=True))
    assert Roll(a.state).digest() == a.digest()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_all_rolls_become_equal_whatever_happens_meanwhile(seed):
    rng = random.Random(seed)
    names = [NodeId(f"n{i}") for i in range(6)]
    rolls = [roll(*names[:3]) for _ in range(4)]
    for step in range(20):
        one = rng.choice(rolls)
        match rng.randrange(5):
            case 0 | 1:
                node = rng.choice(names)
                made = record(node, one.secret, at_ms=step + 2, life=rng.randrange(2))
                one.admit(made)
            case 2:
                one.rotate()
            case 3:
                one.expel(rng.choice(names))
            case 4:
                other = rng.choice(rolls)
                for news in list(one.news()):
                    try:
                        other.merge(news)
                    except SecretStaleError:
                        tell(other, one)
    settle(*rolls)
    for one in rolls:
        assert all(not one.is_expelled(r.key) for r in one.records.values())
        assert len({r.key for r in one.records.values()}) == len(one.records)
