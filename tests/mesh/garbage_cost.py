"""What garbage costs who gets it: ``python -m tests.mesh.garbage_cost [--seconds N] [--turns N]``.

One node process holds the whole model and writes text for a client; beside it, in turns, nobody, or one process that
sends garbage as fast as it can: without a key, with a key but no token, and as an admitted member. Prints tokens a
second of each turn's text, and what share of the quiet rate is left.

The sender runs on the victim's own box and takes a core of it, which a sender elsewhere would not. So there is a turn
with a process that only computes, too: against that, what is left is what the garbage itself costs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from statistics import median
from time import monotonic

import trio

from meshmoe.cli.chaos.garbage import send_as_member, send_as_stranger, send_noise
from meshmoe.cli.local_mesh import LocalNode, open_local_mesh
from meshmoe.core.endpoints import Endpoints
from meshmoe.transport.keyring import new_key_pair

KINDS = ("nobody", "busy", "noise", "stranger", "member")


async def _send(kind: str, word: str, endpoints: Endpoints, lasts_s: float) -> None:
    rng = Random(1)
    senders: dict[str, Callable[[], Awaitable[int]]] = {
        "noise": lambda: send_noise(endpoints, lasts_s, rng),
        "stranger": lambda: send_as_stranger(word, endpoints, lasts_s, rng),
        "member": lambda: send_as_member(word, endpoints, new_key_pair(), lasts_s, rng),
    }
    await senders[kind]()


def send(kind: str, word: str, endpoints: Endpoints, lasts_s: float) -> None:
    """In a process of its own."""
    if kind == "busy":
        ends_s = monotonic() + lasts_s
        while monotonic() < ends_s:
            pass
        return
    trio.run(_send, kind, word, endpoints, lasts_s)


async def tokens_per_s(node: LocalNode, lasts_s: float) -> float:
    """How fast the node writes for one client, first tokens of each text left out."""
    tokens, took_s = 0, 0.0
    began_s = trio.current_time()
    while trio.current_time() - began_s < lasts_s:
        body = {"model": "default", "prompt": "The server", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
        first_s = last_s = 0.0
        async for chunk in node.stream(body):
            for choice in chunk["choices"]:
                last_s = trio.current_time()
                if not first_s:
                    first_s = last_s
                else:
                    tokens += len(choice["meshmoe"]["token_ids"])
        took_s += last_s - first_s
    return tokens / took_s


async def measure(seconds: float, turns: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="mm-") as directory:
        async with open_local_mesh(Path(directory)) as mesh:
            node = mesh.add("victim", "--capacity", "100%", "--threads", "1")
            node.start()
            word = await mesh.join_word("victim")
            await mesh.wait_serving("victim", timeout_s=300)
            status = await node.status()
            host, _, port = status["peers"][0]["address"].rpartition(":")
            endpoints = Endpoints(host, int(port), int(port) + 1, int(port) + 2)
            await tokens_per_s(node, 2.0)
            for _ in range(turns):
                for kind in KINDS:
                    process = None
                    if kind != "nobody":
                        process = spawn.Process(target=send, args=(kind, word, endpoints, seconds + 4), daemon=True)
                        process.start()
                        await trio.sleep(3.0)  # it imports, and begins
                    found[kind].append(await tokens_per_s(node, seconds))
                    if process is not None:
                        process.kill()
                        process.join()
            sys.stdout.write(f"faults: {(await node.status())['faults']}\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    found = trio.run(measure, arguments.seconds, arguments.turns)
    quiet, busy = median(found["nobody"]), median(found["busy"])
    for kind, rates in found.items():
        each = ", ".join(f"{rate:.0f}" for rate in rates)
        rate = median(rates)
        sys.stdout.write(f"{kind:9} {rate:7.0f} tok/s ({each})  {rate / quiet:.0%} of the quiet rate, ")
        sys.stdout.write(f"{rate / busy:.0%} of that beside a process that only computes\n")


if __name__ == "__main__":
    main()
