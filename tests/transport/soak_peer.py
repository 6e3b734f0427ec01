"""One life of one peer of the soak test.

A peer greets all others; who hears a new generation connects anew and greets back. Once a peer has acknowledged our
greeting, both directions are known to be good, and from then on, as long as both lives go on, nothing may be lost:

- *requests* (data lane, random sizes): answered exactly once, with the right bytes, within the deadline. Some are
  cancelled at a random moment; their answers may come or not.
- *streams* (every lane, one task each): numbered parcels, received without gap, in order. On the bulk lane they are
  large. Their sends are cancelled at random, too; a cancelled send is repeated under the same number.

A connection between two living peers may break (on a machine too busy for heartbeats); that is counted, and excuses
what is missing, but nothing that is wrong.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections import deque
from dataclasses import dataclass, field

import trio

from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import NodeId
from meshmoe.transport.base import Parcel, QueueFullError, Transport, UnreachableError
from tests.transport.soak_world import World

JUDGE_AFTER_S = 0.5
"""A gap may be seen before its cause: the broken connection's end hears of that by a task of its own."""
REQUEST_DEADLINE_S = 15.0
GREETING_PERIOD_S = 0.3
WORKERS = 4

_HEAD = struct.Struct("<cQQQQ")  # kind, and four numbers that depend on it
_BIG = random.Random(0).randbytes(2 << 20)


@dataclass
class _Acquaintance:
    """What this life knows of one other peer."""

    generation: int = -1
    epoch: int = 0
    """Grows whenever we connect anew; streams start from zero then."""
    good: bool = False
    """Both directions are known to work."""
    streams: trio.CancelScope = field(default_factory=trio.CancelScope)


class SoakPeer:
    """Runs until cancelled."""

    def __init__(self, world: World, node: NodeId, generation: int, transport: Transport, seed: str) -> None:
        self._world = world
        self._node = node
        self._generation = generation
        self._transport = transport
        self._chance = random.Random(seed)
        self._known = {peer: _Acquaintance() for peer in world.addresses if peer != node}
        self._acquainted = world.acquainted.setdefault(node, set())
        self._next_request = 0
        self._waiting: dict[int, tuple[trio.Event, list[bytes]]] = {}
        self._answered: deque[int] = deque(maxlen=10_000)
        self._expected: dict[tuple[NodeId, int, int, Lane], tuple[int, int]] = {}

    async def run(self) -> None:
        """Greet, serve, ask and stream."""
        async with trio.open_nursery() as self._nursery:
            for peer in self._known:
                self._transport.connect(peer, self._world.addresses[peer])
            for lane in Lane:
                self._nursery.start_soon(self._receive, lane)
            self._nursery.start_soon(self._greet)
            for _ in range(WORKERS):
                self._nursery.start_soon(self._ask_for_ever)

    async def _greet(self) -> None:
        while True:
            for peer, known in self._known.items():
                if not known.good:
                    self._post(peer, Lane.CONTROL, b"H", self._generation)
            await trio.sleep(GREETING_PERIOD_S)

    def _post(self, peer: NodeId, lane: Lane, kind: bytes, *numbers: int) -> None:
        try:
            self._transport.post(peer, lane, [_HEAD.pack(kind, *(*numbers, 0, 0, 0, 0)[:4])])
        except (UnreachableError, QueueFullError):
            self._world.counts["greetings refused"] += 1

    async def _receive(self, lane: Lane) -> None:
        while True:
            parcel = await self._transport.receive(lane)
            kind, *numbers = _HEAD.unpack(parcel.frames[0])
            if kind == b"H":
                self._on_greeting(parcel)
            elif kind == b"A":
                self._on_acknowledgement(parcel, numbers[0])
            elif kind == b"Q":
                self._nursery.start_soon(self._answer, parcel, numbers[0], numbers[1])
            elif kind == b"R":
                self._on_answer(parcel, numbers[0])
            elif kind == b"S":
                self._on_stream(parcel, lane, *numbers)

    def _on_greeting(self, parcel: Parcel) -> None:
        self._meet(parcel)
        self._post(parcel.sender, Lane.CONTROL, b"A", parcel.generation)

    def _meet(self, parcel: Parcel) -> None:
        known = self._known[parcel.sender]
        if parcel.generation > known.generation:
            known.generation = parcel.generation
            known.good = False
            self._acquainted.discard(parcel.sender)
            known.epoch += 1
            known.streams.cancel()
            # The old connections may lead to the former life, and not know it yet.
            self._transport.disconnect(parcel.sender)
            self._transport.connect(parcel.sender, self._world.addresses[parcel.sender])
            self._post(parcel.sender, Lane.CONTROL, b"H", self._generation)

    def _on_acknowledgement(self, parcel: Parcel, generation: int) -> None:
        self._meet(parcel)
        known = self._known[parcel.sender]
        if generation == self._generation and parcel.generation == known.generation and not known.good:
            known.good = True
            self._acquainted.add(parcel.sender)
            known.streams = trio.CancelScope()
            self._nursery.start_soon(self._stream_all, parcel.sender, known)

    # Requests

    async def _ask_for_ever(self) -> None:
        while True:
            good = [peer for peer, known in self._known.items() if known.good]
            if not good or self._world.paused:
                await trio.sleep(0.02)
                continue
            self._world.busy += 1
            try:
                await self._ask(self._chance.choice(good))
            finally:
                self._world.busy -= 1

    async def _ask(self, peer: NodeId) -> None:
        world, counts = self._world, self._world.counts
        generation, start_s = self._known[peer].generation, trio.current_time()
        breaks = world.breaks(self._node, peer)
        number, self._next_request = self._next_request, self._next_request + 1
        payload = self._payload()
        event, answer = trio.Event(), list[bytes]()
        self._waiting[number] = (event, answer)
        cancelled_on_purpose = self._chance.random() < 0.15
        patience_s = self._chance.random() ** 3 * 0.05 if cancelled_on_purpose else REQUEST_DEADLINE_S
        try:
            with trio.move_on_after(patience_s):
                head = _HEAD.pack(b"Q", number, self._generation, 0, 0)
                await self._transport.send(peer, Lane.DATA, [head, payload])
                await event.wait()
        except UnreachableError as error:
            self._refused(peer, generation, f"{self._node} to {peer}: {error}")
            counts["requests refused"] += 1
            return
        finally:
            del self._waiting[number]
        self._answered.append(number)
        if answer:
            counts["requests answered"] += 1
            counts["request bytes"] += len(payload)
            world.note_latency(trio.current_time() - start_s)
            if answer != [_answer_to(payload)]:
                world.violation(f"{self._node} to {peer}: wrong bytes in an answer")
        elif cancelled_on_purpose:
            counts["requests cancelled"] += 1
        else:
            counts["requests unanswered"] += 1
            await self._judge(peer, generation, breaks, f"{self._node} to {peer}: no answer to request {number}")

    def _refused(self, peer: NodeId, generation: int, line: str) -> None:
        """The transport says that it cannot reach a peer: wrong unless that has died or a connection has broken."""
        if self._world.lives(peer, generation):
            self._world.counts["refused by a broken connection"] += 1
            if not self._world.breaks(self._node, peer):
                self._world.violation(line)

    async def _judge(self, peer: NodeId, generation: int, breaks: int, line: str) -> None:
        """What ``line`` says is missing is a violation unless the other life has ended or a connection has broken."""
        await trio.sleep(JUDGE_AFTER_S)
        if not self._world.lives(peer, generation):
            return
        if self._world.breaks(self._node, peer) == breaks:
            self._world.violation(line)
        else:
            self._world.counts["lost by a broken connection"] += 1

    def _payload(self) -> bytes:
        size = int(2 ** self._chance.uniform(0, 16 if self._chance.random() < 0.95 else 21))
        start = self._chance.randrange(len(_BIG) - size + 1)
        return _BIG[start : start + size]

    async def _answer(self, parcel: Parcel, number: int, generation: int) -> None:
        known = self._known[parcel.sender]
        if self._chance.random() < 0.5:
            await trio.sleep(self._chance.random() * 0.005)
        if generation != known.generation:
            return
        try:
            head = _HEAD.pack(b"R", number, 0, 0, 0)
            await self._transport.send(parcel.sender, Lane.DATA, [head, _answer_to(bytes(parcel.frames[1]))])
        except UnreachableError as error:
            self._refused(parcel.sender, generation, f"{self._node} answering {parcel.sender}: {error}")

    def _on_answer(self, parcel: Parcel, number: int) -> None:
        if number in self._waiting:
            event, answer = self._waiting[number]
            if answer:
                self._world.violation(f"{parcel.sender} answered request {number} of {self._node} twice")
            answer.append(bytes(parcel.frames[1]))
            event.set()
        elif number in self._answered or number < self._next_request:
            self._world.counts["answers too late"] += 1
        else:
            self._world.violation(f"{parcel.sender} answered request {number} that {self._node} never made")

    # Streams

    async def _stream_all(self, peer: NodeId, known: _Acquaintance) -> None:
        generation, epoch = known.generation, known.epoch
        self._world.breaks_before[self._node, self._generation, epoch, peer] = self._world.breaks(self._node, peer)
        with known.streams:
            async with trio.open_nursery() as nursery:
                for lane in Lane:
                    nursery.start_soon(self._stream, peer, generation, epoch, lane)

    async def _stream(self, peer: NodeId, generation: int, epoch: int, lane: Lane) -> None:
        number = 0
        while True:
            if self._world.paused:
                await trio.sleep(0.02)
                continue
            head = _HEAD.pack(b"S", epoch, number, self._generation, generation)
            size = self._chance.randrange(1 << 20) if lane is Lane.BULK else self._chance.randrange(2000)
            body = memoryview(_BIG)[number % 1000 : number % 1000 + size]
            frames = [head, body, struct.pack("<I", zlib.crc32(body))]
            try:
                if await self._send_or_give_up(peer, lane, frames):
                    number += 1
            except UnreachableError as error:
                self._refused(peer, generation, f"stream of {self._node} to {peer}: {error}")
            await trio.sleep(self._chance.random() * (0.3 if lane is Lane.BULK else 0.1))

    async def _send_or_give_up(self, peer: NodeId, lane: Lane, frames: list[bytes]) -> bool:
        """Whether it was sent: by post or send, at random, the latter with random patience."""
        if self._chance.random() < 0.5:
            try:
                self._transport.post(peer, lane, frames)
            except QueueFullError:
                return False
            return True
        with trio.move_on_after(self._chance.random() * 0.01):
            await self._transport.send(peer, lane, frames)
            return True
        return False

    def _on_stream(self, parcel: Parcel, lane: Lane, epoch: int, number: int, generation: int, addressee: int) -> None:
        if addressee != self._generation:
            self._world.counts["parcels to a former life"] += 1  # its sender has not heard yet; libzmq reconnects
            return
        key = (parcel.sender, generation, epoch, lane)
        expected, breaks = self._expected.get(key) or (0, self._world.breaks_before[*key[:3], self._node])
        if number != expected:
            line = f"{lane.name} of {key[:3]} at {self._node}: parcel {number} instead of {expected}"
            if number < expected:
                self._world.violation(line)
            else:
                self._nursery.start_soon(self._judge, parcel.sender, generation, breaks, line)
        if generation != parcel.generation or struct.unpack("<I", parcel.frames[2])[0] != zlib.crc32(parcel.frames[1]):
            self._world.violation(f"{lane.name} of {key[:3]} at {self._node}: parcel {number} is damaged")
        self._expected[key] = (number + 1, self._world.breaks(self._node, parcel.sender))
        self._world.counts["stream parcels"] += 1
        self._world.counts["stream bytes"] += len(parcel.frames[1])


def _answer_to(payload: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(payload)) + payload[::-1]
