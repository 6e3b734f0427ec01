"""What encryption costs on this box: ``python -m tests.transport.curve_cost``.

Two transports of one process over loopback, in the clear and encrypted in turns: the round trip of a parcel of 8 KiB on
the data lane, and the rate of chunks of 1 MiB on the bulk lane.
"""

from __future__ import annotations

import sys
import time
from statistics import median

import trio

from meshmoe.core.endpoints import Lane
from meshmoe.transport.keyring import Keyring, new_key_pair
from meshmoe.transport.zmq_transport import open_zmq_transport
from tests.transport.support import A, B

ROUNDS, CHUNKS, TURNS = 1500, 100, 5


async def measure(encrypted: bool) -> tuple[float, float]:
    """Median round trip in microseconds, and MB/s."""
    keyrings = [Keyring(new_key_pair()) for _ in range(2)] if encrypted else [None, None]
    for keyring in keyrings:
        if keyring is not None:
            keyring.assign({A: keyrings[0].own.public, B: keyrings[1].own.public})
    async with open_zmq_transport(A, 1, keyring=keyrings[0]) as a, open_zmq_transport(B, 1, keyring=keyrings[1]) as b:
        a.connect(B, b.endpoints)
        b.connect(A, a.endpoints)
        payload, took_us = [bytes(8192)], []
        for _ in range(ROUNDS):
            began_s = time.perf_counter()
            await a.send(B, Lane.DATA, payload)
            parcel = await b.receive(Lane.DATA)
            await b.send(A, Lane.DATA, parcel.frames)
            await a.receive(Lane.DATA)
            took_us.append(1e6 * (time.perf_counter() - began_s))
        began_s = time.perf_counter()
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for _ in range(CHUNKS):
                    await a.send(B, Lane.BULK, [bytes(1 << 20)])

            nursery.start_soon(send)
            for _ in range(CHUNKS):
                await b.receive(Lane.BULK)
        return median(took_us), CHUNKS * (1 << 20) / 1e6 / (time.perf_counter() - began_s)


def main() -> None:
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for _ in range(TURNS):
        for encrypted in found:
            found[encrypted].append(trio.run(measure, encrypted))
    for encrypted, turns in found.items():
        trip_us, rate = median(t[0] for t in turns), median(t[1] for t in turns)
        name = "encrypted" if encrypted else "in the clear"
        sys.stdout.write(f"{name:12}  8 KiB there and back {trip_us:.0f} us, bulk {rate:.0f} MB/s\n")


if __name__ == "__main__":
    main()
