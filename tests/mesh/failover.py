"""Faults in a mesh of real processes while it streams: ``python -m tests.mesh.failover [--nodes N]... [CASE ...]``.

Each case starts a mesh of its own, streams ten greedy generations on nodes that stay, does something to another node
once all of them have begun, and compares every token with that of a node alone. Together the nodes have room for the
model 2.4 times, so that most experts have two custodians. Prints for each case how long the longest pause between two
tokens was, 99 % of pauses, and both before the fault.

"kill" does it on loopback; "verify" kills while drafts are being checked: four are drafted for every token over links
of 20 ms, and the victim is frozen for a moment first, so that passes that need it are under way when it dies.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from meshmoe.cli.local_mesh import LocalMesh, LocalNode, open_local_mesh

PROMPTS = [
    "The server process",
    "def read(",
    "#include <",
    "lantern, noun:",
    "12 + 7 =",
    "When the client",
    "class Node:",
    "struct buffer {",
    "butter, noun:",
    "8 * 4 =",
]
TOKENS = 48
STREAM_TIMEOUT_S = 170.0
NAMES = ("ant", "bee", "cat", "cow", "elk", "fox", "dog")
ROOM = 2.4
"""What all nodes together have room for, of the model."""
COPIES_TIMEOUT_S = 60.0
LAST_HOLDER = "last holder"
VERIFY = "verify"
DRAFTS = 4
FROZEN_S = 0.3
"""Long enough for every stream to need the victim, too short for anyone to notice that it is frozen."""


@dataclass
class Stream:
    """One generation as its client saw it; ``report`` is what the node says that it took."""

    tokens: list[int] = field(default_factory=list)
    arrivals_s: list[float] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    def pauses_s(self) -> list[float]:
        return [b - a for a, b in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)]


@dataclass
class Outcome:
    """What a case came to, its tokens being right: sorted pauses between tokens of a stream, during it and before.

    ``streams`` are those of the case.
    """

    case: str
    nodes: int
    pauses_s: list[float]
    pauses_before_s: list[float]
    streams: list[Stream]

    @property
    def longest_pause_s(self) -> float:
        return self.pauses_s[-1]

    def __str__(self) -> str:
        during, before = _words(self.pauses_s), _words(self.pauses_before_s)
        return f"{self.nodes} nodes, {self.case:12} longest pause and 99 % of pauses: {during}, before {before}"


def _words(pauses_s: list[float]) -> str:
    return f"{pauses_s[-1]:.2f} s and {pauses_s[int(0.99 * (len(pauses_s) - 1))]:.2f} s"


async def follow(node: LocalNode, prompt: str, tokens: int, stream: Stream) -> None:
    body = {"model": "default", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    async for chunk in node.stream(body):
        stream.report = chunk.get("meshmoe") or stream.report
        for choice in chunk["choices"]:
            found = choice["meshmoe"]["token_ids"]
            stream.tokens += found
            stream.arrivals_s += [trio.current_time()] * len(found)


async def stream_all(nodes: list[LocalNode], tokens: int, fault: Callable[[], Awaitable[None]] | None) -> list[Stream]:
    """Ten streams at once over ``nodes`` in turn; ``fault`` happens once every stream has two tokens."""
    streams = [Stream() for _ in PROMPTS]
    with trio.fail_after(STREAM_TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            for number, (prompt, stream) in enumerate(zip(PROMPTS, streams, strict=True)):
                nursery.start_soon(follow, nodes[number % len(nodes)], prompt, tokens, stream)
            if fault is not None:
                while min(len(stream.tokens) for stream in streams) < 2:
                    await trio.sleep(0.01)
                await fault()
    return streams


async def start(
    mesh: LocalMesh, shares: dict[str, str], flags: list[str], prefixes: dict[str, list[str]] | None = None
) -> None:
    """Start nodes with these capacities, some by a command before theirs; wait until every expert has its place."""
    for name, share in shares.items():
        mesh.add(name, "--capacity", share, "--threads", "1", *flags).prefix = (prefixes or {}).get(name, [])
    first, *others = shares
    mesh.nodes[first].start()
    address = await mesh.join_word(first)
    for name in others:
        mesh.nodes[name].start("--peer", address)
    await mesh.wait_serving(*shares)
    await mesh.wait_settled(*shares)


async def wait_for_copies(node: LocalNode, victim: str) -> None:
    """Wait until no expert is the victim's alone: copies follow some seconds after custody has settled, and
    a death before that is another case, `LAST_HOLDER`."""

    def met(status: dict[str, Any]) -> bool:
        names = [peer["node"] for peer in status["peers"]]
        layers = status["coverage"]["holders_by_layer"]
        return bool(layers) and all([names[at] for at in holders] != [victim] for layer in layers for holders in layer)

    await node.wait_status(met, f"able to do without {victim}", COPIES_TIMEOUT_S)


def node_shares(case: str, nodes: int) -> dict[str, str]:
    """Who takes part, and with which capacity; "dog" is the one that something happens to."""
    if case == LAST_HOLDER:
        return {"ant": "60%", "dog": "60%"}
    return dict.fromkeys([*NAMES[: nodes - 1], "dog"], f"{100 * ROOM / nodes:.1f}%")


def node_flags(case: str, shares: dict[str, str], directory: Path) -> list[str]:
    """Further flags of all nodes."""
    if case != VERIFY:
        return []
    links = directory / "wan.toml"
    nodes = "".join(f"[nodes.{name}]\ncapacity = {share!r}\n" for name, share in shares.items())
    links.write_text(f'[default_link]\npreset = "wan"\n{nodes}')
    return ["--links", str(links), "--drafts", str(DRAFTS)]


async def run_case(
    case: str, tokens: int, expected: list[list[int]], nodes: int = 4, flags: Sequence[str] = ()
) -> Outcome:
    """Run one; ``flags`` are further ones of all nodes."""
    shares = node_shares(case, nodes)
    with tempfile.TemporaryDirectory() as directory:
        async with open_local_mesh(Path(directory)) as mesh:
            flags = [*node_flags(case, shares, Path(directory)), *flags]
            await start(mesh, {name: share for name, share in shares.items() if case != "join" or name != "dog"}, flags)
            victim = mesh.nodes["dog"] if case != "join" else None
            if case in ("kill", VERIFY, "stop"):
                await wait_for_copies(mesh.nodes["ant"], "dog")
            staying = [node for node in mesh.nodes.values() if node is not victim]

            async def fault() -> None:
                address = await mesh.join_word("ant")
                if case == "join":
                    newcomer = mesh.add("dog", "--capacity", shares["dog"], "--threads", "1", *flags)
                    newcomer.start("--peer", address)
                    return
                assert victim is not None
                if case == "kill":
                    victim.send_signal(signal.SIGKILL)
                elif case == VERIFY:
                    victim.send_signal(signal.SIGSTOP)
                    await trio.sleep(FROZEN_S)
                    victim.send_signal(signal.SIGKILL)
                elif case == "leave":
                    victim.send_signal(signal.SIGTERM)
                    assert await victim.wait(60) == 0
                elif case == "stop":
                    victim.send_signal(signal.SIGSTOP)
                    await trio.sleep(20)
                    victim.send_signal(signal.SIGCONT)
                elif case == LAST_HOLDER:
                    victim.send_signal(signal.SIGKILL)
                    await victim.wait(10)
                    await trio.sleep(2)
                    victim.start("--peer", address)

            before = await stream_all(staying, 16, None)
            streams = await stream_all(staying, tokens, fault)
    for prompt, stream, right in zip(PROMPTS, streams, expected, strict=True):
        assert stream.tokens == right, f"{case}: {prompt!r} went wrong: {stream.tokens} is not {right}"
    return Outcome(
        case,
        len(shares),
        *(sorted(pause_s for s in some for pause_s in s.pauses_s()) for some in (streams, before)),
        streams,
    )


async def tokens_alone(tokens: int) -> list[list[int]]:
    """What a node alone writes."""
    with tempfile.TemporaryDirectory() as directory:
        async with open_local_mesh(Path(directory)) as mesh:
            mesh.add("alone", "--capacity", "100%", "--threads", "1").start()
            await mesh.wait_serving("alone")
            return [stream.tokens for stream in await stream_all([mesh.nodes["alone"]], tokens, None)]


CASES = ("kill", VERIFY, "stop", "leave", "join")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--nodes", type=int, action="append", help="how many; repeat for several (3, 5 and 7)")
    parser.add_argument("--join", default="", metavar="FLAGS", help="further flags of meshmoe join for all nodes")
    parser.add_argument("cases", nargs="*", default=[*CASES, LAST_HOLDER], help="the last one has two nodes")
    arguments = parser.parse_args()
    expected = trio.run(tokens_alone, arguments.tokens)
    several = [(case, nodes) for nodes in arguments.nodes or (3, 5, 7) for case in arguments.cases if case in CASES]
    for case, nodes in several + [(LAST_HOLDER, 2)] * (LAST_HOLDER in arguments.cases):
        outcome = trio.run(run_case, case, arguments.tokens, expected, nodes, shlex.split(arguments.join))
        sys.stdout.write(f"{outcome}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
