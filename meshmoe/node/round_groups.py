"""Messages of compiled rounds that are not answered, and rounds that go on elsewhere.

The interpreter has a part in a round only where it does not go as planned: a peer answers in words that compiled code
does not know, or never will, or somebody else takes the round over.
"""

from __future__ import annotations

from typing import NamedTuple

from meshmoe.core.ids import NodeId
from meshmoe.engine.lean.attention import Ints
from meshmoe.engine.rounds.tables import Group, Pair, Post, Round
from meshmoe.node.round_peers import RoundPeers


class OpenGroup(NamedTuple):
    """A message of a compiled round that is not answered."""

    number: int
    peer: NodeId
    experts: list[int]
    sent_s: float
    deadline_s: float


class RoundGroups:
    """See the module; belongs to the compute thread."""

    def __init__(self, post: Post, peers: RoundPeers) -> None:
        """Look after the messages of some tables.

        Args:
            post: The tables.
            peers: Whose rows messages go to.
        """
        self._post = post
        self._peers = peers

    def take_over(self, at: int) -> list[OpenGroup]:
        """A round's messages that are not answered; from now on their answers are left to the caller."""
        post = self._post
        round_ = post.rounds[at].tolist()
        experts: list[list[int]] = [[] for _ in range(round_[Round.GROUPS])]
        for pair in post.pairs[at, : round_[Round.PAIRS]].tolist():
            mine = experts[pair[Pair.GROUP]]
            if not mine or mine[-1] != pair[Pair.EXPERT]:
                mine.append(pair[Pair.EXPERT])
        found = []
        for group, asked in zip(post.groups[at].tolist(), experts, strict=False):
            if group[Group.STATE] == 1:
                peer = self._peers.names[group[Group.PEER]]
                times = group[Group.SENT_NS] / 1e9, group[Group.DEADLINE_NS] / 1e9
                found.append(OpenGroup(group[Group.ID], peer, asked, *times))
        post.rounds[at, Round.STATE] = 0
        return found

    def moved_bytes(self, at: int) -> tuple[int, int]:
        """What a round has sent and received."""
        row = self._post.rounds[at]
        return int(row[Round.SENT_BYTES]), int(row[Round.RECEIVED_BYTES])

    def waits_for(self, peer: NodeId, number: int) -> bool:
        """Whether a round that is under way waits for a peer's answer to the message of that number."""
        return any(group[Group.ID] == number for _, group in self._open(peer))

    def give_up(self, peer: NodeId, number: int | None = None) -> None:
        """Messages to a peer, or the one of that number, will not be answered: others have to be asked."""
        for at, group in self._open(peer):
            if number is None or group[Group.ID] == number:
                round_ = self._post.rounds[at]
                group[Group.STATE] = 3
                round_[Round.OPEN] -= 1
                round_[Round.FAILED] += 1
                if round_[Round.OPEN] == 0:
                    round_[Round.STATE] = 2

    def _open(self, peer: NodeId) -> list[tuple[int, Ints]]:
        """Messages to a peer that are not answered, and the rounds that they belong to."""
        post, slot = self._post, self._peers.find(peer)
        return [
            (at, group)
            for at, round_ in enumerate(post.rounds.tolist())
            if round_[Round.STATE] == 1
            for group in post.groups[at, : round_[Round.GROUPS]]
            if group[Group.STATE] == 1 and group[Group.PEER] == slot
        ]
