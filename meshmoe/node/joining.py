"""How a newcomer and a mesh meet: `Hello`, and `Welcome` or `Refusal`, on the control lane.

A newcomer knows an address, not a name, so it speaks through a connection under a placeholder name (`@HOST:PORT`, which
no node can have) until the answer says who is there. A member answers through a connection of its own to the
endpoints in the `Hello`: every pair of nodes must be able to reach each other in both directions.

In a secured mesh the newcomer must know the key of whom it speaks to (its token has it, or an earlier life has met that
node), and shows a proof made with its token. Until it is admitted it is a guest, who is heard on the control lane and
with these messages only; so is, for the newcomer, the member that answers.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import trio

from meshmoe.admission import admission_proof
from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.core.errors import JoinError, PeerError
from meshmoe.core.ids import NodeId
from meshmoe.core.token import Contact
from meshmoe.membership import Learned
from meshmoe.node.admission_driver import AdmissionDriver
from meshmoe.node.membership_driver import MembershipDriver
from meshmoe.node.messenger import Messenger
from meshmoe.transport.base import Parcel
from meshmoe.wire.codec import Decoded, VersionError
from meshmoe.wire.messages import Hello, JoinProof, Refusal, Welcome

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
REPEAT_S = 0.5

GREET_AGAIN_S = 20.0
"""How often a node looks whether its --peer addresses are of its mesh, and says hello where they are not. When
everybody who remembered the mesh has gone or been wiped, newcomers would else be a mesh apart for ever."""

REFUSING_MAX = 8
"""Refusals that are on their way at once; each holds a connection for two seconds."""


class Greeter:
    """The newcomer's side."""

    def __init__(self, messenger: Messenger, admission: AdmissionDriver | None = None) -> None:
        """Make one.

        Args:
            messenger: To speak and hear.
            admission: Of a secured mesh.
        """
        self._messenger = messenger
        self._admission = admission
        self._asked_key: bytes | None = None
        self._answer: Welcome | Refusal | VersionError | None = None
        self._answered = trio.Event()
        messenger.on(Welcome, self._keep, from_guests=True)
        messenger.on(Refusal, self._keep, from_guests=True)
        messenger.on_version_error = lambda parcel, error: self._set(error) if self._is_asked(parcel) else None

    def _is_asked(self, parcel: Parcel) -> bool:
        """Whether a parcel comes from a member, or from whom this node has asked to let it in."""
        return not parcel.guest or (self._asked_key is not None and parcel.guest == self._asked_key.hex())

    def _keep(self, parcel: Parcel, decoded: Decoded) -> None:
        answer = decoded.message
        assert isinstance(answer, Welcome | Refusal)
        if not self._is_asked(parcel) or answer.node != parcel.sender:
            raise PeerError(f"{type(answer).__name__} of {answer.node} from somebody else")
        if self._admission is not None:
            if isinstance(answer, Refusal) and answer.reason == "expelled" and not parcel.guest:
                self._admission.hear_refusal(answer)
            if isinstance(answer, Welcome):
                if answer.admission is None or answer.admission[1].node != answer.node:
                    raise PeerError(f"welcome of {answer.node} without its admission")
                # Before anything else of the same connection is read: who is admitted here decides what of it counts.
                self._admission.adopt(answer)
        self._set(answer)

    def _set(self, answer: Welcome | Refusal | VersionError) -> None:
        if self._answer is None:
            self._answer = answer
            self._answered.set()

    def _forget_answer(self) -> None:
        self._answer, self._answered = None, trio.Event()

    async def greet(self, peers: Sequence[Contact], hello: Hello) -> Welcome:
        """Introduce this node to the first peer that answers.

        Args:
            peers: Whom to try.
            hello: Who we are.

        Raises:
            JoinError: Nobody answered (the message has each address and its problem), or a member refused.
        """
        problems: list[str] = []
        self._forget_answer()
        for contact, (host, port) in ((one, address) for one in peers for address in one.addresses):
            if (host, port) == (hello.endpoints.host, hello.endpoints.control_port):
                problems.append(f"{host}:{port} is this node itself: give the address of another one")
                continue
            problem = await _knock(host, port) or await self._introduce(host, port, contact, hello)
            if problem is None:
                assert isinstance(self._answer, Welcome)
                return self._answer
            problems.append(problem)
        raise JoinError("cannot join: " + "; ".join(problems))

    async def _introduce(self, host: str, port: int, contact: Contact, hello: Hello) -> str | None:
        """Say hello until answered; returns what went wrong, or None."""
        placeholder = NodeId(f"@{host}:{port}")
        if self._admission is not None:
            security = self._admission.security
            self._asked_key = contact.key or security.key_at(host, port)
            if self._asked_key is None:
                return (
                    f"{host}:{port}: an address alone does not let this node in: run `meshmoe token new` on a member "
                    "and give the word that it prints with --peer"
                )
            security.keyring.expect(placeholder, self._asked_key)
            if contact.ticket is not None:
                proof = admission_proof(contact.ticket, security.key, hello.node)
                shown = JoinProof(contact.ticket.token, contact.ticket.expires_s, proof)
                hello = msgspec.structs.replace(hello, proof=shown)
        try:
            self._messenger.transport.connect(placeholder, Endpoints(host, port))
        except PeerError as error:
            return f"{host}:{port}: {error}"
        try:
            with trio.move_on_after(ANSWER_TIMEOUT_S):
                while not self._answered.is_set():
                    self._messenger.try_post(placeholder, Lane.CONTROL, hello)
                    with trio.move_on_after(REPEAT_S):
                        await self._answered.wait()
        finally:
            self._messenger.transport.disconnect(placeholder)
            if self._admission is not None:
                self._admission.security.keyring.forget(placeholder)
        match self._answer:
            case None:
                how = "with --insecure" if self._admission is None else "with the key that the token names"
                return (
                    f"{host}:{port} takes connections, but no node answered within {ANSWER_TIMEOUT_S:.0f} s: is it the "
                    f"control port of a node that runs {how}, and can it reach {hello.endpoints.address()} (this node) "
                    "and the two ports above it?"
                )
            case Refusal(text=text):
                raise JoinError(f"{host}:{port} refused: {text}")
            case VersionError() as mismatch:
                raise JoinError(f"{host}:{port}: {mismatch}")
            case _:
                return None


async def _knock(host: str, port: int) -> str | None:
    """Whether anything listens there; plain TCP tells at once what ZeroMQ would retry for ever."""
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            stream = await trio.open_tcp_stream(host, port)
            await stream.aclose()
    except trio.TooSlowError:
        return f"no answer from {host}:{port} within {CONNECT_TIMEOUT_S:.0f} s: check the address and the firewall"
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            return f"{host}:{port}: the name {host} cannot be looked up now: check the network, or give an IP address"
        return f"{host}:{port}: there is no host named {host}: check the name, or give an IP address"
    except UnicodeError:
        return f"{host}:{port}: {host!r} cannot be a host name: check it, or give an IP address"
    except OSError as error:
        # A name with several addresses gives no number: trio has tried them all.
        if error.errno in (errno.ECONNREFUSED, None):
            return f"nothing listens on {host}:{port}: is `meshmoe join` running there?"
        return f"no way to {host}:{port} ({error.strerror}): check the address and this box's network"
    return None


class Doorkeeper:
    """The member's side: answers every `Hello`."""

    def __init__(
        self,
        messenger: Messenger,
        membership: MembershipDriver,
        welcome: Callable[[], Welcome | None],
        spawn: Callable[[Callable[[], Awaitable[None]]], None],
        admission: AdmissionDriver | None = None,
    ) -> None:
        """Make one.

        Args:
            messenger: To hear and answer.
            membership: Learns who was welcomed.
            welcome: This node's own introduction; None as long as it does not know its model.
            spawn: Starts an async function as a task of the node.
            admission: Of a secured mesh.
        """
        self._admission = admission
        self._refusing = 0
        self._messenger = messenger
        self._membership = membership
        self._welcome = welcome
        self._spawn = spawn
        messenger.on(Hello, self._hear, from_guests=True)

    def _hear(self, parcel: Parcel, decoded: Decoded) -> None:
        hello = decoded.message
        assert isinstance(hello, Hello)
        if (hello.node, hello.generation) != (parcel.sender, parcel.generation):
            raise PeerError(f"hello of {hello.node} came from {parcel.sender}")
        welcome = self._welcome()
        if welcome is not None:  # else it asks again in a moment
            self._spawn(lambda: self._answer(hello, welcome, parcel.guest))

    async def _answer(self, hello: Hello, welcome: Welcome, guest: str) -> None:
        try:
            await self._welcome_or_refuse(hello, welcome, guest)
        except PeerError as error:  # an address that is none, for one: whoever sent it gets no answer
            self._messenger.faults["bad_message"] += 1
            logger.info("hello of %s cannot be answered: %s", hello.node, error)

    async def _welcome_or_refuse(self, hello: Hello, welcome: Welcome, guest: str) -> None:
        refusal = await self._objection(hello, welcome, guest)
        if refusal is not None:
            await self._refuse(hello, refusal, guest)
            return
        newcomer = NodeId(hello.node)
        if self._admission is not None:
            welcome = msgspec.structs.replace(
                welcome, admission=(self._admission.roll.secret, self._admission.own_record())
            )
        # The welcome goes first: until it has come, the newcomer takes nothing else from this node.
        self._messenger.transport.connect(newcomer, hello.endpoints)
        self._messenger.try_post(newcomer, Lane.CONTROL, welcome)
        if self._admission is not None:
            self._admission.welcome(newcomer)
        self._membership.feed(Learned(newcomer, hello.generation, hello.endpoints))

    async def _refuse(self, hello: Hello, refusal: Refusal, guest: str) -> None:
        """Tell the reason at the address that the newcomer has given; bounded, since anybody can give any address."""
        logger.warning("refused %s at %s: %s", hello.node, hello.endpoints.address(), refusal.text)
        if self._refusing >= REFUSING_MAX:
            return
        self._refusing += 1
        placeholder = NodeId(f"@{hello.endpoints.address()}")
        if self._admission is not None:
            key = bytes.fromhex(guest) if guest else self._admission.security.keyring.key_of(NodeId(hello.node))
            if key is not None:
                self._admission.security.keyring.expect(placeholder, key)
        try:
            self._messenger.transport.connect(placeholder, hello.endpoints)
            self._messenger.try_post(placeholder, Lane.CONTROL, refusal)
            await trio.sleep(2.0)
        finally:
            self._refusing -= 1
            self._messenger.transport.disconnect(placeholder)
            if self._admission is not None:
                self._admission.security.keyring.forget(placeholder)

    async def _objection(self, hello: Hello, welcome: Welcome, guest: str) -> Refusal | None:
        if hello.model_digest is not None and hello.model_digest != welcome.model_digest:
            return Refusal(
                node=welcome.node,
                generation=welcome.generation,
                reason="other_model",
                text=f"this mesh serves model {welcome.model_digest[:12]}, you brought {hello.model_digest[:12]}: join "
                "without --model to take the mesh's, or start a mesh of your own",
            )
        if await self._name_is_taken(hello):
            return Refusal(
                node=welcome.node,
                generation=welcome.generation,
                reason="name_taken",
                text=f"a node named {hello.node} is in the mesh already: choose another with --name",
            )
        if guest and self._admission is not None:
            problem = self._admission.admit(hello, bytes.fromhex(guest))
            if problem is not None:
                return Refusal(
                    node=welcome.node,
                    generation=welcome.generation,
                    reason="not_admitted",
                    text=f"{hello.node} is not let in: {problem}",
                )
        return None

    async def _name_is_taken(self, hello: Hello) -> bool:
        """Whether an earlier life of this name still lives, elsewhere; a restarted node takes its place again."""
        if hello.node == self._membership.node:
            return True
        known = self._membership.machine.members.get(NodeId(hello.node))
        if known is None or not known.state.present or known.generation >= hello.generation:
            return known is not None and known.state.present and known.generation > hello.generation
        if known.endpoints == hello.endpoints:
            return False
        try:
            with trio.fail_after(1.0):
                stream = await trio.open_tcp_stream(known.endpoints.host, known.endpoints.control_port)
                await stream.aclose()
        except (OSError, trio.TooSlowError):
            return False
        return True


async def keep_greeting(greeter: Greeter, membership: MembershipDriver, peers: Sequence[Contact], hello: Hello) -> None:
    """Now and then: see that whoever lives at the addresses given by ``--peer`` is in this mesh."""
    while True:
        await trio.sleep(GREET_AGAIN_S)
        members = membership.machine.members.values()
        known = {(m.endpoints.host, m.endpoints.control_port) for m in members if m.state.present}
        apart = [contact for contact in peers if known.isdisjoint(contact.addresses)]
        for contact in apart:
            try:
                welcome = await greeter.greet([contact], hello)
            except JoinError as error:
                logger.debug("greeting again: %s", error)
            else:
                membership.feed(Learned(NodeId(welcome.node), welcome.generation, welcome.endpoints))
