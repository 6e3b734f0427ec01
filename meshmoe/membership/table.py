"""The members as this node believes them, and what each piece of news changes.

All changes of belief go through `MemberTable.hear` (somebody's word) or `MemberTable.convict` (this node's own
verdict). Invariants: a member's standing only rises in the order of `meshmoe.membership.member`; every suspect has a
`Suspicion` and two timers (verify, judge); every member that is alive, suspect or dead is connected, one that left is
not, but for a visit; a verdict is passed only by a node whose own probes of the suspect have failed during the
suspicion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import NodeId
from meshmoe.membership.effects import (
    Connect,
    Disconnect,
    MemberAlive,
    MemberDead,
    MemberForgotten,
    MemberLeft,
    MembershipEffect,
    MemberSuspect,
    NameConflict,
    Send,
)
from meshmoe.membership.local import Local, Timer, TimerKind
from meshmoe.membership.member import Member, MemberState, Standing, hear
from meshmoe.membership.messages import ACCUSERS_MAX, SYNC_MEMBERS_MAX, MemberNews, MemberSync, MemberUpdate
from meshmoe.membership.rotation import Rotation
from meshmoe.membership.rtt import RttMeter
from meshmoe.membership.suspicion import Suspicion

ALIVE, SUSPECT, DEAD, LEFT = MemberState


class MemberTable:
    """Everybody but this node itself."""

    def __init__(self, local: Local) -> None:
        self.members: dict[NodeId, Member] = {}
        self.meters: dict[NodeId, RttMeter] = {}
        self.suspicions: dict[NodeId, Suspicion] = {}
        self.rotation = Rotation(local.rng)
        self.present_count = 1
        """Members alive or suspect, this node included: the ``n`` of all formulas."""
        self.upheaval = False
        """Set when somebody was met or came back from the dead; whoever reacts to it resets it."""
        self._local = local
        self._connected: dict[NodeId, Endpoints] = {}
        self._life_since_s: dict[NodeId, float] = {}
        self._conflicts: dict[NodeId, int] = {}
        self._visited: NodeId | None = None

    def present(self, *, but: NodeId | None = None, alive_only: bool = False) -> list[NodeId]:
        """Names of the members that count as here, in the order in which they were met."""
        worst = ALIVE if alive_only else SUSPECT
        return [node for node, member in self.members.items() if member.state <= worst and node != but]

    def can_send_to(self, peer: NodeId) -> bool:
        """Whether a message to ``peer`` can go out."""
        return peer in self._connected

    def update_of(self, node: NodeId) -> MemberUpdate:
        """This node's word on a member, fit to be sent."""
        return self._update(self.members[node])

    # -- somebody's word ------------------------------------------------------------

    def hear(self, update: MemberUpdate, now: float, *, spread: bool = True) -> None:
        """Take in one piece of news; ``spread`` says whether to pass it on."""
        node = NodeId(update.node)
        if node == self._local.node:
            self._hear_of_me(update)
            return
        known = self.members.get(node)
        if known is not None and _is_old(known, update):
            return
        news = Standing(update.generation, update.incarnation, update.state)
        accusers = [NodeId(accuser) for accuser in update.accusers]
        merged = hear(known.standing if known else None, news)
        if merged is None:
            if known is not None and known.state is SUSPECT and news.rank >= known.standing.rank:
                self._accuse(known, accusers, now)
            return
        is_later_life = known is not None and known.generation != merged.generation
        if is_later_life and merged.state.present and update.endpoints is None:
            return  # nobody says where it listens, and the earlier life's place would stay for ever
        endpoints = update.endpoints or (known.endpoints if known else None)
        if endpoints is None or (known is None and not self._make_room()):
            return
        since_s = known.since_s if known and known.state is merged.state else now
        member = Member(node, merged.generation, merged.incarnation, merged.state, endpoints, since_s)
        self._enter(known, member, accusers, now, spread=spread)

    def answered(self, node: NodeId, generation: int, incarnation: int, now: float) -> None:
        """A member has answered a probe: proof of life at ``incarnation``, which may refute what is held against it."""
        member = self.members.get(node)
        if member is None or member.generation != generation:
            return
        self.hear(MemberUpdate(node, generation, incarnation, ALIVE, member.endpoints), now)
        if node in self.suspicions:
            # It answered before it heard of the accusation: what was held against it until now is refuted all the same.
            self._suspect(self.members[node], [], now)

    def accuse(self, node: NodeId, generation: int, now: float) -> None:
        """This node's own probe of a member has failed."""
        member = self.members.get(node)
        if member is None or member.generation != generation or not member.state.present:
            return
        if member.state is ALIVE:
            accused = msgspec.structs.replace(member, state=SUSPECT, since_s=now)
            self._enter(member, accused, [self._local.node], now, spread=True)
        self.suspicions[node].verified = True
        self._accuse(self.members[node], [self._local.node], now)

    # -- this node's own verdicts ------------------------------------------------------------

    def judge(self, node: NodeId, now: float) -> None:
        """Convict a suspect if its time is over and this node has itself found it silent, else look again later."""
        suspicion = self.suspicions[node]
        scale = 1 + self._local.awareness.lag(now)
        over = now >= suspicion.deadline_s(self._local.config, self.present_count, scale)
        if over and suspicion.verified:
            self.convict(node, now)
        else:
            # Our loop was late, which passes; or our own probe is still on its way.
            self._local.timers.set(Timer(TimerKind.JUDGE, node), now + self._local.config.probe_retry_s)

    def convict(self, node: NodeId, now: float) -> None:
        """Hold a member for dead."""
        member = self.members[node]
        accusers = self.suspicions[node].accusers if node in self.suspicions else [self._local.node]
        self._enter(member, msgspec.structs.replace(member, state=DEAD, since_s=now), accusers, now, spread=True)

    def restart_suspicions(self, now: float) -> None:
        """After a pause: what was counted while this node stood still proves nothing."""
        for node in list(self.suspicions):
            self._suspect(self.members[node], [], now)

    def forget(self, node: NodeId) -> None:
        """Drop a member that has been gone for long."""
        member = self.members.pop(node)
        self.rotation.remove(node)
        self.meters.pop(node, None)
        self._life_since_s.pop(node, None)
        self._conflicts.pop(node, None)
        self._local.queue.discard(node)
        self._local.timers.cancel(Timer(TimerKind.FORGET, node))
        self._disconnect(node)
        self._local.out.append(MemberForgotten(member))

    def note_earlier_life(self, node: NodeId, generation: int, now: float) -> None:
        """A message came from an earlier life than the one known: in flight, or are there two living nodes?"""
        member = self.members[node]
        settled = now - self._life_since_s[node] > self._local.config.conflict_grace_s
        if member.state.present and settled and self._conflicts.get(node) != generation:
            self._conflicts[node] = generation
            self._local.out.append(NameConflict(node, generation, member))

    def tell_of_later_life(self, node: NodeId, endpoints: Endpoints) -> None:
        """A node came under a generation lower than that of a life which is over: its clock was set back. Tell it."""
        self._connected[node] = endpoints
        self._local.out.append(Connect(node, endpoints))
        self._local.out.append(Send(node, MemberNews([self.update_of(node)])))

    def visit(self, node: NodeId) -> None:
        """Connect to a member that left, until `end_visit`."""
        member = self.members[node]
        self._visited = node
        self._connected[node] = member.endpoints
        self._local.out.append(Connect(node, member.endpoints))

    def end_visit(self) -> None:
        """Nobody has answered, or a later life has, which stays connected."""
        node, self._visited = self._visited, None
        if node is not None and node in self.members and self.members[node].state is LEFT:
            self._disconnect(node)

    def sync(self, peer: NodeId, *, wants_reply: bool) -> None:
        """Send the whole table, in as many messages as it takes."""
        updates = [self._local.update(), *(self._update(member) for member in self.members.values())]
        for start in range(0, len(updates), SYNC_MEMBERS_MAX):
            part = updates[start : start + SYNC_MEMBERS_MAX]
            last = start + SYNC_MEMBERS_MAX >= len(updates)
            self._local.out.append(Send(peer, MemberSync(part, wants_reply=wants_reply and last)))

    # -- inside ------------------------------------------------------------

    def _enter(
        self, known: Member | None, member: Member, accusers: Iterable[NodeId], now: float, *, spread: bool
    ) -> None:
        """Make ``member`` the truth, with all that follows from it."""
        node, out = member.node, self._local.out
        new_life = known is None or known.generation != member.generation
        was = None if known is None or new_life else known.state
        if new_life:
            self._begin_life(known, member, now)
        self.members[node] = member
        self.present_count += member.state.present - (was is not None and was.present)
        if member.state is not LEFT and (new_life or self._connected.get(node) != member.endpoints):
            self._connected[node] = member.endpoints
            out.append(Connect(node, member.endpoints))
        if member.state is not SUSPECT:
            self._end_suspicion(node)
        if member.state is SUSPECT:
            self._suspect(member, accusers, now)
        if was is not member.state or (known is not None and known.endpoints != member.endpoints):
            out.append(_NOTICE[member.state](member))
        self._local.timers.cancel(Timer(TimerKind.FORGET, node))
        if not member.state.present:
            retain_s = self._local.config.left_retain_s if member.state is LEFT else self._local.config.dead_retain_s
            self._local.timers.set(Timer(TimerKind.FORGET, node), now + retain_s)
        if member.state is LEFT:
            self._disconnect(node)
        if spread:
            self._local.queue.put(self._update(member, accusers))
        if member.state.present and (was is DEAD or (new_life and node == self._visited)):
            # A partition may have healed: compare all, so that everybody wrongly buried on either side hears of it. Or
            # two meshes have met.
            self.upheaval = True
            self.sync(node, wants_reply=True)

    def _begin_life(self, known: Member | None, member: Member, now: float) -> None:
        node = member.node
        self._life_since_s[node] = now
        self.meters[node] = RttMeter()
        if known is None:
            self.rotation.add(node)
            return
        self._end_suspicion(node)
        if known.state.present:
            self.present_count -= 1
            if known.endpoints != member.endpoints and node in self._connected:
                # If the earlier life is in truth alive, this is the last that it hears from us: it should yield.
                self._local.out.append(Send(node, MemberNews([self._update(member)])))
            self._local.out.append(MemberDead(msgspec.structs.replace(known, state=DEAD, since_s=now)))

    def _accuse(self, member: Member, accusers: Iterable[NodeId], now: float) -> None:
        suspicion = self.suspicions[member.node]
        if suspicion.accuse(accusers):
            self._judge_at(member.node)
            self._local.queue.put(self._update(member))

    def _suspect(self, member: Member, accusers: Iterable[NodeId], now: float) -> None:
        """Open a case, or open it anew."""
        suspicion = Suspicion(now, accusers, min(ACCUSERS_MAX, self._local.config.confirmations + 1))
        self.suspicions[member.node] = suspicion
        self._judge_at(member.node)
        # Spread over half a window, or a whole mesh would probe the suspect at the same moment.
        delay_s = self._local.rng.uniform(0, self._local.config.probe_window_s / 2)
        self._local.timers.set(Timer(TimerKind.VERIFY, member.node), now + delay_s)

    def _end_suspicion(self, node: NodeId) -> None:
        if self.suspicions.pop(node, None) is not None:
            self._local.timers.cancel(Timer(TimerKind.JUDGE, node))
            self._local.timers.cancel(Timer(TimerKind.VERIFY, node))

    def _judge_at(self, node: NodeId) -> None:
        """Set the time to judge, as if this node's loop were never late: whether it was is seen then."""
        at_s = self.suspicions[node].deadline_s(self._local.config, self.present_count, scale=1)
        self._local.timers.set(Timer(TimerKind.JUDGE, node), at_s)

    def _update(self, member: Member, accusers: Iterable[NodeId] = ()) -> MemberUpdate:
        suspicion = self.suspicions.get(member.node)
        named = list(suspicion.accusers if suspicion else accusers)[:ACCUSERS_MAX]
        if member.state is DEAD and not named:
            named = [self._local.node]  # the verdict rests on this node's own probes
        return MemberUpdate(
            member.node,
            member.generation,
            member.incarnation,
            member.state,
            member.endpoints if member.state is not LEFT else None,
            [str(accuser) for accuser in named],
        )

    def _disconnect(self, node: NodeId) -> None:
        if self._connected.pop(node, None) is not None:
            self._local.out.append(Disconnect(node))

    def _make_room(self) -> bool:
        if len(self.members) < self._local.config.members_max - 1:
            return True
        gone = [member for member in self.members.values() if not member.state.present]
        if not gone:
            return False
        self.forget(min(gone, key=lambda member: (member.since_s, member.node)).node)
        return True

    def _hear_of_me(self, update: MemberUpdate) -> None:
        local = self._local
        if local.leaving or update.generation < local.generation:
            return
        if update.generation > local.generation or update.state is LEFT:
            # A later life of our name, or a farewell that we never said and that nobody will let us take back.
            endpoints = update.endpoints or local.endpoints
            other = Member(local.node, update.generation, update.incarnation, update.state, endpoints, 0.0)
            local.out.append(NameConflict(local.node, local.generation, other, yields=True))
            local.fall_silent()
            return
        if update.state is ALIVE:
            if update.incarnation <= local.incarnation:
                return
        elif update.incarnation < local.incarnation:
            return
        else:
            local.awareness.accused()
        local.incarnation = update.incarnation + 1
        local.queue.put(local.update())


_NOTICE: dict[MemberState, Callable[[Member], MembershipEffect]] = {
    ALIVE: MemberAlive,
    SUSPECT: MemberSuspect,
    DEAD: MemberDead,
    LEFT: MemberLeft,
}


def _is_old(known: Member, update: MemberUpdate) -> bool:
    """Whether a look suffices to see that `hear` would change nothing: so it is with most news."""
    if update.generation != known.generation or update.state is LEFT:
        return update.generation < known.generation
    return update.incarnation < known.incarnation or (update.incarnation == known.incarnation and update.state is ALIVE)
