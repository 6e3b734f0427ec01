"""Round trips of 8 KiB on loopback, in turns in one run: ``python -m tests.transport.figures [--rounds N] [--json]``.

Raw ZeroMQ is two DEALER sockets and a blocking thread at each end, which is as fast as ZeroMQ gets in Python. The
product's transport is measured with two transports in two processes, parcel out, parcel back, on the data lane;
the last row adds what an expert call adds: encoding, decoding and validating the message with its tensor, at both ends.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection

import torch
import trio
import zmq

from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import NodeId
from meshmoe.transport.zmq_transport import open_zmq_transport
from meshmoe.wire.codec import CODEC
from meshmoe.wire.messages import ExpertCall, ExpertReply, ExpertRows
from meshmoe.wire.tensors import pack_tensor, unpack_tensor

REPEATS = 3
SIZE_BYTES = 8192
SPAWN = multiprocessing.get_context("spawn")
ASKER, ECHO = NodeId("asker"), NodeId("echo")
PAYLOAD = b"x" * SIZE_BYTES


def raw_echo(pipe: Connection) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        pipe.send(socket.bind_to_random_port("tcp://127.0.0.1"))
        while True:
            message = socket.recv()
            if not message:
                return
            socket.send(message)


def raw_rounds(count: int) -> list[float]:
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=raw_echo, args=(there,), daemon=True)
    process.start()
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(f"tcp://127.0.0.1:{here.recv()}")
        took_s = []
        for _ in range(count):
            start_s = time.perf_counter()
            socket.send(PAYLOAD)
            socket.recv()
            took_s.append(time.perf_counter() - start_s)
        socket.send(b"")
    process.join()
    return took_s


async def echo(pipe: Connection, kind: str) -> None:
    async with open_zmq_transport(ECHO, 1) as transport:
        pipe.send(transport.endpoints)
        transport.connect(ASKER, pipe.recv())
        while True:
            parcel = await transport.receive(Lane.DATA)
            if len(parcel.frames) == 1 and not len(parcel.frames[0]):
                return
            frames = [bytes(frame) for frame in parcel.frames]
            if kind == "call":
                decoded = CODEC.decode(parcel.frames)
                reply = ExpertReply(id=decoded.message.id, compute_us=0)
                frames = CODEC.encode(reply, tensor=pack_tensor(unpack_tensor(decoded.tensor)))
            transport.post(ASKER, Lane.DATA, frames)


def run_echo(pipe: Connection, kind: str) -> None:
    trio.run(echo, pipe, kind)


async def rounds(count: int, kind: str) -> list[float]:
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=run_echo, args=(there, kind), daemon=True)
    process.start()
    hidden = torch.zeros(1, SIZE_BYTES // 2, dtype=torch.bfloat16)
    took_s = []
    async with open_zmq_transport(ASKER, 1) as transport:
        transport.connect(ECHO, await trio.to_thread.run_sync(here.recv))
        here.send(transport.endpoints)
        for number in range(count):
            start_s = time.perf_counter()
            if kind == "call":
                call = ExpertCall(
                    id=number, layer=3, experts=[ExpertRows(4, []), ExpertRows(9, [])], budget_ms=2000, decode=True
                )
                frames = CODEC.encode(call, tensor=pack_tensor(hidden))
            else:
                frames = [PAYLOAD]
            transport.post(ECHO, Lane.DATA, frames)
            parcel = await transport.receive(Lane.DATA)
            if kind == "call":
                unpack_tensor(CODEC.decode(parcel.frames).tensor)
            took_s.append(time.perf_counter() - start_s)
        transport.post(ECHO, Lane.DATA, [b""])
        await trio.to_thread.run_sync(process.join)
    return took_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    medians_us: dict[str, list[float]] = {"raw": [], "transport": [], "call": []}
    for _ in range(REPEATS):
        for kind, values in medians_us.items():
            took_s = raw_rounds(arguments.rounds) if kind == "raw" else trio.run(rounds, arguments.rounds, kind)
            values.append(statistics.median(took_s[len(took_s) // 10 :]) * 1e6)
    result = {kind: statistics.median(values) for kind, values in medians_us.items()}
    if arguments.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return 0
    for kind, median_us in result.items():
        sys.stdout.write(f"{kind:10} {median_us:7.1f} us  {median_us / result['raw']:.2f} of raw\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
