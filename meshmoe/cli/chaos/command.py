"""The command ``meshmoe chaos``."""

from __future__ import annotations

import logging
import shlex
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from random import Random
from typing import Any

import click
import httpx
import psutil
import trio
from rich.console import Console

from meshmoe.cli.chaos.faults import START_S_MAX, Faults
from meshmoe.cli.chaos.load import Load
from meshmoe.cli.chaos.namespaces import Namespaces, open_namespaces
from meshmoe.cli.chaos.plan import KINDS, make_plan
from meshmoe.cli.chaos.report import Findings, show, timeline
from meshmoe.cli.local_mesh import LocalMesh, LocalNode, NodeFailedError, open_local_mesh
from meshmoe.core.errors import MeshmoeError
from meshmoe.core.ids import NodeId
from meshmoe.core.units import parse_duration

PROMPTS = ("The server process", "def read(", "#include <", "lantern, noun:", "12 + 7 =", "struct buffer {")
ALONE = "alone"
SETTLE_S_MAX = 180.0
WARM_S = 60.0
"""Memory and descriptors are compared with those after a process has served for so long: its caches have filled."""

MEMORY_GROWTH_MAX = 1.5
DESCRIPTOR_GROWTH_MAX = 64


class PromisesBrokenError(MeshmoeError):
    """A chaos run has found something."""


@click.command()
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Decides which faults happen when.")
@click.option("--duration", default="120s", show_default=True, metavar="TIME", help="Of faults, such as 120s.")
@click.option("--nodes", "count", type=click.IntRange(3, 9), default=5, show_default=True, metavar="N")
@click.option("--clients", type=click.IntRange(1, 32), default=3, show_default=True, metavar="N", help="At once.")
@click.option("--tokens", type=click.IntRange(1, 256), default=24, show_default=True, metavar="N", help="Of a request.")
@click.option("--model", type=click.Path(path_type=Path), metavar="DIR", help="Another model than the bundled one.")
@click.option("--join", default="", metavar="FLAGS", help="Further flags of `meshmoe join` for the nodes.")
@click.option("--only", metavar="KINDS", help=f"Of {', '.join(KINDS)}.")
@click.option("--netns", is_flag=True, help="Each node in a network namespace, so that cables can be pulled (root).")
@click.option("--timeline", "picture", type=click.Path(path_type=Path), metavar="FILE", help="Draw the run as SVG.")
def chaos(
    seed: int,
    duration: str,
    count: int,
    clients: int,
    tokens: int,
    model: Path | None,
    join: str,
    only: str | None,
    netns: bool,
    picture: Path | None,
) -> None:
    """Do everything bad to a mesh of real processes while it serves, and check every promise.

    Nodes are killed, stopped, cut off, slowed down, wiped, run out of disk, and sent garbage, by a plan that the seed
    decides. Every finished request must have the tokens of one node alone, no expert may be lost, no request may hang,
    and afterwards all nodes must agree again.
    """
    kinds = tuple(only.split(",")) if only else tuple(KINDS)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise click.UsageError(f"--only: there is no fault {unknown[0]!r}: there is {', '.join(KINDS)}")
    try:
        flags = shlex.split(join)
    except ValueError as error:
        raise click.UsageError(f"--join: {error}") from error
    logging.getLogger("meshmoe").addHandler(logging.NullHandler())  # what the garbage's own transport complains of
    findings = Findings(seed, parse_duration(duration), count)
    names = [f"n{number + 1}" for number in range(count)]
    with open_namespaces(names) if netns else nullcontext() as spaces:
        trio.run(_run, findings, names, clients, tokens, model, flags, kinds, spaces, picture)
    if findings.problems:
        raise PromisesBrokenError(f"seed {seed} broke {len(findings.problems)} promises: {findings.problems[0]}")


async def _run(
    findings: Findings,
    names: list[str],
    clients: int,
    tokens: int,
    model: Path | None,
    flags: list[str],
    kinds: tuple[str, ...],
    spaces: Namespaces | None,
    picture: Path | None,
) -> None:
    console = Console(highlight=False)
    rng = Random(findings.seed)
    own = ["--model", str(model)] if model is not None else []
    with tempfile.TemporaryDirectory(prefix="mm-", ignore_cleanup_errors=True) as directory:
        async with open_local_mesh(Path(directory)) as mesh:
            console.print("what one node alone writes ...")
            expected = await _tokens_alone(mesh, tokens, own)
            share = f"{round(100 * 2.2 / findings.nodes)}%"
            links = str(Path(directory) / "links.toml")
            for name in names:
                mesh.add(name, "--capacity", share, "--threads", "1", "--no-discovery", "--links", links, *flags)
                if spaces is not None:
                    mesh.nodes[NodeId(name)].prefix = spaces.command(name)
                    mesh.nodes[NodeId(name)].listen(f"{spaces.host(name)}:0")
            nodes: dict[str, LocalNode] = {name: mesh.nodes[NodeId(name)] for name in names}
            began_s = [float("inf")]
            word = [""]

            def now_s() -> float:
                return max(0.0, trio.current_time() - began_s[0])

            faults = Faults(nodes, Path(directory), lambda: word[0], now_s, Random(rng.random()), spaces)
            console.print(f"starting {findings.nodes} nodes, {share} of the experts each ...")
            nodes[names[0]].start(*own)
            word[0] = await mesh.join_word(names[0])
            for name in names[1:]:
                nodes[name].start("--peer", word[0])
            await mesh.wait_serving(*names, timeout_s=START_S_MAX)
            await mesh.wait_settled(*names, timeout_s=START_S_MAX)
            began_s[0] = trio.current_time()
            plan = make_plan(findings.seed, names, findings.duration_s, kinds)
            console.print(f"{len(plan)} faults in {findings.duration_s:.0f} s, {clients} clients")
            load = Load(nodes, expected, now_s, Random(rng.random()), faults.gone_since)
            warm: dict[str, tuple[int, int, int]] = {}
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch_memory, nodes, warm)
                async with trio.open_nursery() as asking:
                    asking.start_soon(load.run, clients)
                    await faults.run(plan)
                    await trio.sleep(max(0.0, findings.duration_s - now_s()))
                    load.finish()
                nursery.cancel_scope.cancel()
            await _check(mesh, names, nodes, findings, load, faults, warm, now_s)
    show(console, findings, load)
    if picture is not None:
        await trio.Path(picture).write_text(timeline(findings, names, faults.spans, load.requests), encoding="utf-8")


async def _tokens_alone(mesh: LocalMesh, tokens: int, own: list[str]) -> dict[str, list[int]]:
    alone = mesh.add(ALONE, "--capacity", "100%", "--threads", "1")
    alone.start(*own)
    await mesh.wait_serving(ALONE, timeout_s=START_S_MAX)
    expected = {}
    for prompt in PROMPTS:
        body = {"model": "default", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        answer = await alone.complete(body)
        expected[prompt] = answer["choices"][0]["meshmoe"]["token_ids"]
    await alone.stop()
    del mesh.nodes[NodeId(ALONE)]
    return expected


async def _watch_memory(nodes: dict[str, LocalNode], warm: dict[str, tuple[int, int, int]]) -> None:
    """Measure every process once it has served for `WARM_S`; a restarted node is measured anew."""
    serving_since_s: dict[int, float] = {}
    while True:
        for name, node in nodes.items():
            if node.exit_code is not None or warm.get(name, (0, 0, 0))[0] == node.pid:
                continue
            with trio.move_on_after(2.0), suppress(httpx.HTTPError):
                status = await node.status()
                if status["serving"]["ready"]:
                    since_s = serving_since_s.setdefault(node.pid, trio.current_time())
                    if trio.current_time() - since_s >= WARM_S:
                        warm.update(_measure({name: node}))
        await trio.sleep(2.0)


def _measure(nodes: dict[str, LocalNode]) -> dict[str, tuple[int, int, int]]:
    """Of each node: process id, resident bytes, open descriptors."""
    found = {}
    for name, node in nodes.items():
        if node.exit_code is None:
            process = psutil.Process(node.pid)
            found[name] = (node.pid, process.memory_info().rss, process.num_fds())
    return found


async def _check(
    mesh: LocalMesh,
    names: list[str],
    nodes: dict[str, LocalNode],
    findings: Findings,
    load: Load,
    faults: Faults,
    warm: dict[str, tuple[int, int, int]],
    now_s: Callable[[], float],
) -> None:
    ended_s = max((end for _, _, end in faults.spans), default=0.0)
    findings.injected, findings.left_out = dict(faults.injected), faults.left_out
    findings.garbage_parcels = faults.garbage_parcels
    problems = findings.problems
    problems += [*_bad_requests(load), *faults.failures]
    for name in names:
        code = nodes[name].exit_code
        if code is not None:
            problems.append(f"{name} has ended with code {code}: {nodes[name].last_words()}")
    if any(node.exit_code is not None for node in nodes.values()):
        return
    try:
        await mesh.wait_serving(*names, timeout_s=START_S_MAX)
        await mesh.wait_settled(*names, timeout_s=SETTLE_S_MAX)
        findings.agreed_after_s = now_s() - ended_s
    except (NodeFailedError, httpx.HTTPError) as error:
        problems.append(f"no agreement afterwards: {error}")
        return
    statuses: dict[str, dict[str, Any]] = {name: await nodes[name].status() for name in names}
    findings.lost_experts = max(s["custody"]["lost_total"] for s in statuses.values())
    uncovered = max(s["coverage"]["total"] - s["coverage"]["covered"] for s in statuses.values())
    if findings.lost_experts or uncovered:
        problems.append(f"{findings.lost_experts} experts are lost, {uncovered} have no holder")
    for name in names:
        request = await load.ask(name)
        if request.outcome != "finished":
            problems.append(f"{name} does not serve afterwards: {request.outcome} {request.why}")
    for name, (pid, rss_bytes, descriptors) in _measure(nodes).items():
        if warm.get(name, (0, 0, 0))[0] != pid:
            continue  # it has been restarted since
        findings.memory_growth = max(findings.memory_growth or 0.0, rss_bytes / warm[name][1])
        more = descriptors - warm[name][2]
        findings.descriptor_growth = (
            more if findings.descriptor_growth is None else max(findings.descriptor_growth, more)
        )
    if findings.memory_growth is not None and findings.memory_growth > MEMORY_GROWTH_MAX:
        problems.append(f"memory grew to {findings.memory_growth:.2f} times that of the first minute")
    if findings.descriptor_growth is not None and findings.descriptor_growth > DESCRIPTOR_GROWTH_MAX:
        problems.append(f"{findings.descriptor_growth} more descriptors are open than after the first minute")


def _bad_requests(load: Load) -> list[str]:
    """Promises about requests that were broken, in words."""
    problems = []
    for outcome in ("wrong", "hung"):
        if load.counts[outcome]:
            first = next(r for r in load.requests if r.outcome == outcome)
            problems.append(
                f"{load.counts[outcome]} requests {outcome}, the first on {first.node} at {first.began_s:.0f} s"
            )
    silent = [r for r in load.requests if r.outcome in ("refused", "failed") and len(r.why) < 20]
    if silent:
        problems.append(f"{len(silent)} requests failed without a clear error, the first with {silent[0].why!r}")
    return problems
