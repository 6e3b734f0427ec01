"""Keeps the roll of members: lets newcomers in, tells the others, makes and revokes tokens, expels."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from random import Random

import trio

from meshmoe.admission import (
    AdmissionRecord,
    Roll,
    RollDigest,
    RollNews,
    SecretStaleError,
    TokenNote,
    ticket_of,
)
from meshmoe.core.endpoints import Lane
from meshmoe.core.errors import JoinError, RequestError
from meshmoe.core.ids import NodeId
from meshmoe.core.token import JoinToken, Ticket
from meshmoe.membership import Doubted
from meshmoe.node.membership_driver import MembershipDriver
from meshmoe.node.messenger import Messenger
from meshmoe.node.security import Security
from meshmoe.transport.base import Parcel
from meshmoe.wire.codec import Decoded
from meshmoe.wire.messages import Hello, Refusal, Welcome

logger = logging.getLogger(__name__)

DIGEST_INTERVAL_S = 1.0
"""How often one member, by chance, is asked whether its roll is the same: news that got lost come round in so many
seconds times the logarithm of the number of members."""

NEWS_INTERVAL_S = 0.3
"""One member is told the whole roll at most this often, however often it asks."""

EXPELLED_FAREWELL_S = 0.2
"""An expelled member is told why; then its connections are closed."""

STANDING_LIFETIME_S = 24 * 3600
STANDING_LABEL = "join command"
"""The token in the join command that a node shows: good for a day, made anew when an hour is left."""


class AdmissionDriver:
    """See the module's text."""

    def __init__(
        self, security: Security, messenger: Messenger, membership: MembershipDriver, generation: int, rng: Random
    ) -> None:
        self.security = security
        self._messenger = messenger
        self._membership = membership
        self._generation = generation
        self._rng = rng
        self._seen_changes = -1
        self._to_write = trio.Event()
        self._told_at_s: dict[NodeId, float] = {}
        self.on_expelled: Callable[[JoinError], None] = lambda _: None
        messenger.on_ban = self._ban
        messenger.on(RollDigest, self._compare)
        messenger.on(RollNews, self._merge)

    @property
    def roll(self) -> Roll:
        """Of this node's mesh."""
        roll = self.security.roll
        assert roll is not None, "this node belongs to no mesh yet"
        return roll

    async def run(self) -> None:
        """Compare rolls with others and keep this one on disk, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_on_disk)
            while True:
                await trio.sleep(DIGEST_INTERVAL_S)
                if self.security.roll is None:
                    continue
                self._note_contacts()
                others = self._others()
                if others:
                    digest = RollDigest(digest=self.roll.digest())
                    self._messenger.try_post(self._rng.choice(others), Lane.CONTROL, digest)

    # -- newcomers ----------------------------------------------------------------------------------------------------

    def admit(self, hello: Hello, key: bytes) -> str | None:
        """Let a newcomer in that has proved to own ``key``.

        Returns:
            Why not, in words; None when it is a member now.
        """
        if self.roll.is_expelled(key):
            return "it was expelled from the mesh"
        if hello.proof is None:
            return "it has no token: make one with `meshmoe token new` on a member, and give it with --peer"
        now_s, known = time.time(), self.roll.records.get(NodeId(hello.node))
        ticket = ticket_of(self.roll.secret, hello.proof.token, hello.proof.expires_s)
        record = AdmissionRecord(
            node=hello.node,
            key=key,
            token=hello.proof.token,
            expires_s=hello.proof.expires_s,
            epoch=self.roll.secret.epoch,
            # Later than whatever is known of the name, also by a clock that is behind.
            admitted_ms=max(int(now_s * 1000), known.admitted_ms + 1 if known is not None else 0),
            proof=hello.proof.proof,
        )
        problem = self.roll.objection(ticket, now_s) or self.roll.admit(record)
        if problem is None:
            logger.info("%s is admitted", hello.node)
            self._changed()
        return problem

    def welcome(self, peer: NodeId) -> None:
        """Tell a member everything that newcomers need to know."""
        for news in self.roll.news():
            self._messenger.try_post(peer, Lane.CONTROL, news)

    def adopt(self, welcome: Welcome) -> None:
        """Belong to the mesh of the member that welcomes this node."""
        assert welcome.admission is not None
        secret, record = welcome.admission
        self.security.adopt(secret, record)
        self._changed(tell=False)

    def own_record(self) -> AdmissionRecord:
        """Of this node."""
        return self.roll.records[self._membership.node]

    # -- tokens -------------------------------------------------------------------------------------------------------

    def new_ticket(self, lifetime_s: int, label: str) -> Ticket:
        """Issue a token; 0 seconds are for ever."""
        now_s = int(time.time())
        self.roll.forget_expired_tokens(now_s)
        note = TokenNote(
            token=secrets.token_bytes(8),
            epoch=self.roll.secret.epoch,
            issued_s=now_s,
            expires_s=now_s + lifetime_s if lifetime_s else 0,
            by=self._membership.node,
            label=label,
        )
        self.roll.note_token(note)
        self._changed()
        return ticket_of(self.roll.secret, note.token, note.expires_s)

    def standing_ticket(self) -> Ticket:
        """That of the join command."""
        soon_s = time.time() + 3600
        for note in self.roll.tokens:
            own = note.by == self._membership.node and note.label == STANDING_LABEL
            if own and not note.revoked and note.expires_s > soon_s:
                return ticket_of(self.roll.secret, note.token, note.expires_s)
        return self.new_ticket(STANDING_LIFETIME_S, STANDING_LABEL)

    def word(self, ticket: Ticket, addresses: list[tuple[str, int]]) -> str:
        """The token as people copy it."""
        return JoinToken(addresses[:4], self.security.key, ticket).encode()

    def revoke(self, token: bytes) -> None:
        """Let nobody in by this token any more; who is in stays in.

        Raises:
            RequestError: There is no such token.
        """
        for note in self.roll.tokens:
            if note.token == token:
                self.roll.note_token(
                    TokenNote(note.token, note.epoch, note.issued_s, note.expires_s, note.by, note.label, revoked=True)
                )
                self._changed()
                return
        raise RequestError(f"there is no token {token.hex()}: `meshmoe token list` shows them", http_status=404)

    # -- expelling ----------------------------------------------------------------------------------------------------

    def rotate(self) -> None:
        """Give the mesh a new secret; members stay, tokens of before admit nobody any more."""
        self.roll.rotate()
        logger.warning("the mesh has a new secret: tokens of before are void")
        self._changed()

    async def expel(self, node: NodeId) -> None:
        """Strike a member out, tell it, and tell the others.

        Raises:
            RequestError: There is no such member, or it is this node.
        """
        record = self.roll.records.get(node)
        if record is None or node == self._membership.node:
            known = ", ".join(sorted(name for name in self.roll.records if name != self._membership.node)) or "nobody"
            raise RequestError(f"{node} is no other member of this mesh: it has {known}", http_status=404)
        text = f"this node was expelled from the mesh by {self._membership.node}"
        refusal = Refusal(node=self._membership.node, generation=self._generation, reason="expelled", text=text)
        self._messenger.try_post(node, Lane.CONTROL, refusal)
        if self.roll.expel(node) is None:
            raise RequestError("too many members were expelled from this mesh: found a new one", http_status=409)
        for peer in self._others():
            if peer != node:
                self.welcome(peer)
        await trio.sleep(EXPELLED_FAREWELL_S)
        logger.warning("%s is expelled", node)
        self._changed()
        self._membership.feed(Doubted(node))

    def hear_refusal(self, refusal: Refusal) -> None:
        """This node is told that it was expelled."""
        self.on_expelled(JoinError(f"{refusal.text}: join anew under another key (another --state) if that was wrong"))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _others(self) -> list[NodeId]:
        return [peer for peer in self._membership.present() if peer in self.roll.records]

    def _ban(self, peer: NodeId, for_s: float) -> None:
        key = self.security.keyring.key_of(peer)
        if key is not None:
            self.security.keyring.ban(key.hex(), trio.current_time() + for_s)

    def _note_contacts(self) -> None:
        met = self._membership.machine.members
        contacts = {node: met[node].endpoints for node in self._others()}
        if contacts and any(self.roll.contacts.get(node) != endpoints for node, endpoints in contacts.items()):
            self.roll.contacts = {n: e for n, e in self.roll.contacts.items() if n in self.roll.records} | contacts
            self._to_write.set()

    def _changed(self, *, tell: bool = True) -> None:
        if self.roll.changes == self._seen_changes:
            return
        self._seen_changes = self.roll.changes
        self.security.update_keyring()
        self._to_write.set()
        if tell:
            for peer in self._others():
                self.welcome(peer)

    def _compare(self, parcel: Parcel, decoded: Decoded) -> None:
        assert isinstance(decoded.message, RollDigest)
        if self.security.roll is not None and decoded.message.digest != self.roll.digest():
            self._tell(parcel.sender)

    def _merge(self, parcel: Parcel, decoded: Decoded) -> None:
        news = decoded.message
        assert isinstance(news, RollNews)
        if self.security.roll is None:
            return
        try:
            self.roll.merge(news)
        except SecretStaleError:
            self._tell(parcel.sender)
        before = set(self.security.keyring.members)
        self._changed(tell=False)
        for gone in before - set(self.security.keyring.members):
            self._membership.feed(Doubted(gone))

    def _tell(self, peer: NodeId) -> None:
        now_s = trio.current_time()
        if now_s - self._told_at_s.get(peer, float("-inf")) >= NEWS_INTERVAL_S:
            self._told_at_s[peer] = now_s
            self.welcome(peer)

    async def _keep_on_disk(self) -> None:
        while True:
            await self._to_write.wait()
            self._to_write = trio.Event()
            await trio.to_thread.run_sync(self.security.write)
            await trio.sleep(0.1)
