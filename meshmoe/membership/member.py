"""What is known of one member, and which of two pieces of news about it holds.

Theory (SWIM, section 4.2, extended by generations). News about a member is a *standing*: generation, incarnation,
state. Standings are totally ordered:

1. a higher generation wins: it is a later life of the same name;
2. within a life, ``left`` is final, since only the member itself says so and it never takes it back;
3. else a higher incarnation wins: only the member itself raises it, to refute an accusation;
4. at equal incarnation ``dead`` beats ``suspect`` beats ``alive``.

Taking the greater of two is commutative, associative and idempotent, so nodes that heard the same news in any order
agree. One rule stands before the order (DESIGN, section 5): ``dead`` heard from somebody else counts as ``suspect``,
because a verdict rests on the judge's own probes. A node which itself holds the member for dead keeps it dead.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import msgspec

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import NodeId


class MemberState(IntEnum):
    """Order matters: at equal incarnation the greater value wins."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3

    @property
    def present(self) -> bool:
        """Whether the member counts as part of the mesh: a suspect does until it is convicted."""
        return self <= MemberState.SUSPECT


class Standing(NamedTuple):
    """One piece of news about a member, without its name and place."""

    generation: int
    incarnation: int
    state: MemberState

    @property
    def rank(self) -> tuple[int, bool, int, int]:
        """Sort key of the total order in the module's text."""
        return (self.generation, self.state is MemberState.LEFT, self.incarnation, self.state)


def merge(ours: Standing, theirs: Standing) -> Standing:
    """The standing that holds when both have been heard."""
    return ours if ours.rank >= theirs.rank else theirs


def hear(known: Standing | None, news: Standing) -> Standing | None:
    """Apply the rule of second-hand deaths, then merge.

    Args:
        known: What this node holds of the member, None for a stranger.
        news: What somebody else says.

    Returns:
        The new standing, or None when the news changes nothing. Strangers enter as alive or suspect only: a death or
        farewell of somebody unknown says nothing that this node could use, and accepting it would hand the memory of
        the dead from node to node for ever.
    """
    if known is None:
        return news if news.state.present else None
    if news.state is MemberState.DEAD and not _holds_dead(known, news):
        news = news._replace(state=MemberState.SUSPECT)
    merged = merge(known, news)
    return None if merged == known else merged


def _holds_dead(known: Standing, news: Standing) -> bool:
    return known.state is MemberState.DEAD and known.generation == news.generation


class Member(msgspec.Struct, frozen=True):
    """A member as this node knows it; replaced, never changed.

    Attributes:
        node: Its name.
        generation: Which life of that name.
        incarnation: How often, in this life, it has refuted an accusation.
        state: Alive, suspect, dead or left.
        endpoints: Where it listens.
        since_s: When ``state`` was entered, on this node's clock.
    """

    node: NodeId
    generation: int
    incarnation: int
    state: MemberState
    endpoints: Endpoints
    since_s: float

    @property
    def standing(self) -> Standing:
        """The part that merges."""
        return Standing(self.generation, self.incarnation, self.state)
