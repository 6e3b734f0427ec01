"""Peers that send garbage: without a key, with a key but without a token, and as an admitted member."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from random import Random

import trio
import trio.lowlevel

from meshmoe import __version__
from meshmoe.admission import admission_proof
from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.core.errors import PeerError
from meshmoe.core.ids import NodeId
from meshmoe.core.token import Contact, parse_peer
from meshmoe.transport.base import QueueFullError
from meshmoe.transport.keyring import KeyPair, Keyring, new_key_pair
from meshmoe.transport.zmq_transport import ZmqTransport, open_zmq_transport
from meshmoe.wire.codec import CODEC
from meshmoe.wire.frames import Frame
from meshmoe.wire.messages import CallCancel, ExpertCall, ExpertRows, Hello, JoinProof

_TARGET = NodeId("target")


async def send_noise(endpoints: Endpoints, lasts_s: float, rng: Random) -> int:
    """Random bytes to all three ports, some after a ZMTP greeting; returns bytes sent."""
    sent = 0
    with trio.move_on_after(lasts_s):
        while True:
            with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                stream = await trio.open_tcp_stream(endpoints.host, endpoints.port(rng.choice(list(Lane))))
                with trio.move_on_after(1.0):
                    async with stream:
                        if rng.random() < 0.5:
                            await stream.send_all(b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(48))
                        for _ in range(20):
                            data = rng.randbytes(rng.randrange(1, 4096))
                            await stream.send_all(data)
                            sent += len(data)
            await trio.sleep(0.02)
    return sent


async def send_as_stranger(word: str, endpoints: Endpoints, lasts_s: float, rng: Random) -> int:
    """Garbage of somebody who knows a node's key and has one, but was never admitted; returns parcels sent."""
    return await _flood(parse_peer(word), endpoints, "stranger", new_key_pair(), lasts_s, rng)


async def send_as_member(word: str, endpoints: Endpoints, keys: KeyPair, lasts_s: float, rng: Random) -> int:
    """Join with a token, then send damaged messages at full speed; returns parcels sent."""
    contact = parse_peer(word)
    assert contact.ticket is not None
    proof = admission_proof(contact.ticket, keys.public, "garbage")
    shown = JoinProof(contact.ticket.token, contact.ticket.expires_s, proof)
    return await _flood(contact, endpoints, "garbage", keys, lasts_s, rng, shown)


async def _flood(
    contact: Contact,
    endpoints: Endpoints,
    name: str,
    keys: KeyPair,
    lasts_s: float,
    rng: Random,
    shown: JoinProof | None = None,
) -> int:
    assert contact.key is not None
    keyring = Keyring(keys)
    keyring.assign({_TARGET: contact.key})
    generation, sent = time.time_ns() // 1_000_000, 0
    async with open_zmq_transport(NodeId(name), generation, keyring=keyring) as transport:
        transport.connect(_TARGET, endpoints)
        hello = Hello(
            node=name, generation=generation, endpoints=transport.endpoints, software=__version__, proof=shown
        )
        _try_post(transport, Lane.CONTROL, CODEC.encode(hello))
        await trio.sleep(0.5)
        with trio.move_on_after(lasts_s):
            while True:
                for _ in range(16):
                    sent += _try_post(transport, rng.choice(list(Lane)), _damaged(rng))
                await trio.lowlevel.checkpoint()
    return sent


def _try_post(transport: ZmqTransport, lane: Lane, frames: Sequence[Frame]) -> int:
    try:
        transport.post(_TARGET, lane, frames)
    except (PeerError, QueueFullError):
        return 0
    return 1


def _damaged(rng: Random) -> list[bytes]:
    message = rng.choice(
        [
            CallCancel(id=rng.randrange(1 << 40)),
            ExpertCall(id=rng.randrange(1 << 40), layer=rng.randrange(64), experts=[ExpertRows(3)], budget_ms=1000),
        ]
    )
    frames = [bytearray(frame) for frame in CODEC.encode(message)]
    for _ in range(rng.randrange(1, 8)):
        frame = rng.choice(frames)
        frame[rng.randrange(len(frame))] = rng.randrange(256)
    return [bytes(frame) for frame in frames]
