"""``meshmoe join``: start a node; begin a mesh, or join one.

Everything that needs torch is imported once the flags are known to be good: ``--help`` and a misspelled flag are
answered at once.
"""

from __future__ import annotations

import dataclasses
import gc
import ipaddress
import logging
import re
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
import trio
from rich.console import Console

from meshmoe.api.api_key import read_api_key
from meshmoe.api.loopback import is_loopback_name, parse_http_address
from meshmoe.cli.finding import find_peer
from meshmoe.cli.logs import FORMATS, Log
from meshmoe.cli.options import socket_option
from meshmoe.core.config import parse_capacity, parse_profile, parse_topology
from meshmoe.core.errors import ConfigError
from meshmoe.core.ids import NodeId, node_id
from meshmoe.core.links import LinkShape
from meshmoe.core.token import parse_address, parse_peer
from meshmoe.core.units import format_size, parse_size
from meshmoe.engine.drafts.mode import parse_draft_mode
from meshmoe.node.data_files import read_data_file
from meshmoe.node.discovery import Beacon, announced_hosts, open_beacon
from meshmoe.node.measure import auto_threads
from meshmoe.node.places import cache_dir, state_dir, was_member
from meshmoe.node.settings import DEFAULT_PORT, NodeSettings, capacity_of, default_node_name

if TYPE_CHECKING:
    from meshmoe.api.server import ApiAddresses
    from meshmoe.node.node import Node

_HELP = """Start a node on this box.

Told nothing, it joins the mesh that it finds on this network, and begins one if there is none. With --peer it joins
that one; with --model it begins one. A box without the model's files gets what it needs from the others.

\b
  meshmoe join                                       join the mesh of this network, or begin one (bundled model)
  meshmoe join --model ~/models/Qwen3-30B-A3B        begin a mesh with a model of your own
  meshmoe join --peer mm1-kZKt...                    join, with the token that a member shows
  meshmoe join --peer mm1-kZKt... --capacity 6GiB
"""


DESCRIPTORS_WANTED = 16_384
DESCRIPTORS_MIN = 192
"""The process itself takes some 60, a peer 12, a local client one."""


@click.command(help=_HELP)
@click.option(
    "--model", type=click.Path(path_type=Path), metavar="DIR", help="Hugging Face checkpoint of an MoE model."
)
@click.option("--peer", "peers", multiple=True, metavar="TOKEN|ADDR", help="A token of the mesh; may be repeated.")
@click.option("--listen", metavar="HOST:PORT", help=f"Where peers reach this node.  [default: 0.0.0.0:{DEFAULT_PORT}]")
@click.option("--advertise", metavar="HOST", help="Address that peers should use, where it is another than --listen's.")
@click.option("--capacity", metavar="SIZE", help="For experts: 6GiB, or 40% of the model's.  [default: what is free]")
@click.option("--name", metavar="NAME", help="Of this node, one of a kind in the mesh.  [default: the host name]")
@socket_option
@click.option(
    "--http",
    metavar="HOST:PORT",
    help="Serve page and API on this TCP port too; beyond loopback only with a key.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Its first line is the key that requests to --http must bring.  [else $MESHMOE_API_KEY]",
)
@click.option("--profile", metavar="FILE", help="What this box is: a file, or the name of one in nodes/.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to compute."
)
@click.option(
    "--drafts",
    default="auto",
    show_default=True,
    metavar="MODE",
    help="Tokens guessed ahead to save round trips, never changing the text: auto, off, lookup, or how many a pass.",
)
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="Compute threads.")
@click.option(
    "--kv-cache",
    metavar="SIZE",
    help="Room for the keys and values of all requests.  [default: a quarter of what is free, at most]",
)
@click.option(
    "--decode",
    type=click.Choice(["auto", "lean", "generic"]),
    default="auto",
    show_default=True,
    help="For debugging: compiled code, or transformers' own.",
)
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
)
@click.option("--state", type=click.Path(path_type=Path), metavar="DIR", help="Where fetched weights are kept.")
@click.option(
    "--membership", type=click.Choice(["lan", "wan"]), default="lan", show_default=True, help="Failure detector."
)
@click.option("--links", metavar="TOPOLOGY", help="Emulate the links that a topology file gives this node (no root).")
@click.option(
    "--express/--no-express",
    default=True,
    show_default=True,
    help="Let the compute thread serve expert calls itself: shorter rounds.",
)
@click.option(
    "--spin",
    is_flag=True,
    help="While answers are due within 5 ms, look for them without sleeping, if cores are idle.",
)
@click.option("--hedge", is_flag=True, help="Send late expert calls to a second holder, too (at most 5 % more calls).")
@click.option(
    "--discovery/--no-discovery",
    default=None,
    help="Look for a mesh by multicast DNS, and be found.  [default: yes, unless --listen is loopback]",
)
@click.option(
    "--spot-check",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="RATE",
    help="Have this share of what peers compute computed by another peer, too, and compare.",
)
@click.option("--insecure", is_flag=True, help="No encryption, no admission: everybody who connects is believed.")
@click.option(
    "--half-life",
    "half_life_s",
    type=click.FloatRange(1.0, 1e7),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How soon this node forgets what it was used for; experts are placed by what it remembers.",
)
@click.option("--seed", type=int, metavar="N", help="Of this node's own chance (probe order, emulated jitter).")
@click.option(
    "--log-format",
    type=click.Choice(FORMATS),
    default="auto",
    show_default=True,
    help="auto: for people on a terminal, JSON lines elsewhere.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def join(  # noqa: D103 - the help text stands above
    *,
    model: Path | None,
    peers: tuple[str, ...],
    listen: str | None,
    advertise: str | None,
    capacity: str | None,
    name: str | None,
    socket_path: Path,
    http: str | None,
    api_key_file: Path | None,
    profile: str | None,
    drafts: str,
    threads: int | None,
    kv_cache: str | None,
    decode: Literal["auto", "lean", "generic"],
    device: str,
    dtype: str,
    state: Path | None,
    membership: str,
    links: str | None,
    express: bool,
    spin: bool,
    hedge: bool,
    discovery: bool | None,
    spot_check: float,
    insecure: bool,
    half_life_s: float,
    seed: int | None,
    log_format: str,
    verbose: bool,
) -> None:
    node = node_id(name) if name is not None else default_node_name()
    box = None
    if profile is not None:
        text, where = read_data_file("nodes", profile, "--profile")
        box = parse_profile(text, where)
    api_key = read_api_key(api_key_file) if http is not None or api_key_file is not None else None
    flag = parse_capacity(capacity) if capacity is not None else None
    settings = NodeSettings(
        node=node,
        peers=tuple(parse_peer(peer) for peer in peers),
        listen=parse_address(listen, "--listen", port_min=0) if listen is not None else ("0.0.0.0", None),
        advertise=_host(advertise) if advertise is not None else None,
        model=model,
        capacity=capacity_of(flag, box),
        drafts=parse_draft_mode(drafts),
        threads=threads or (box.threads if box is not None else None) or (auto_threads() if device == "cpu" else 1),
        kv_cache_bytes=parse_size(kv_cache) if kv_cache is not None else None,
        decode=decode,
        device=device,
        dtype=dtype,
        socket_path=socket_path,
        http=parse_http_address(http, keyed=api_key is not None) if http is not None else None,
        api_key=api_key,
        state_dir=state or state_dir(node),
        cache_dir=cache_dir(),
        membership=membership,
        links=_emulated_links(links, node),
        links_file=links,
        express=express,
        spin=spin,
        hedge=hedge,
        insecure=insecure,
        demand_half_life_s=half_life_s,
        spot_check=spot_check,
        seed=seed,
    )
    log = Log(log_format, verbose=verbose, node=node)
    _allow_descriptors()
    if discovery is None:
        discovery = not is_loopback_name(settings.listen[0])
    trio.run(_live, settings, discovery, log, restrict_keyboard_interrupt_to_checkpoints=True)


def _host(text: str) -> str:
    """Check ``--advertise``: peers are told it as it stands, and could only say that they cannot reach it."""
    host = text.removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        if not re.fullmatch(r"[0-9A-Za-z]([0-9A-Za-z_.-]{0,252})", host):
            raise ConfigError(
                f"--advertise: {text!r} is not a host: write a name or an address without a port, like 192.168.1.20"
            ) from None
    return host


def _emulated_links(topology: str | None, node: NodeId) -> dict[NodeId, LinkShape]:
    if topology is None:
        return {}
    parsed = parse_topology(*read_data_file("topology", topology, "--links"))
    if node not in parsed.nodes:
        raise ConfigError(f"--links: {parsed.name} has no node {node}: it has {', '.join(parsed.nodes)}")
    return parsed.links_of(node)


def _allow_descriptors() -> None:
    """Raise the soft limit of open files: a peer takes a dozen descriptors, a local client one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < DESCRIPTORS_MIN:
        raise ConfigError(
            f"this process may open {wanted} files only, and needs {DESCRIPTORS_MIN} for a small mesh: raise the limit "
            "with `ulimit -n 4096`"
        )


async def _live(settings: NodeSettings, discovery: bool, log: Log) -> None:
    hosts = announced_hosts(settings.listen[0], settings.advertise) if discovery else []
    if not hosts:
        await _live_announced(settings, None, log)
        return
    async with open_beacon(settings.node, hosts) as beacon:
        await _live_announced(settings, beacon, log)


async def _live_announced(settings: NodeSettings, beacon: Beacon | None, log: Log) -> None:
    # Takes seconds, in which discovery listens on threads of its own.
    gc.disable()
    from meshmoe.api.server import serve_api
    from meshmoe.node.node import Node

    _leave_to_last()
    gc.enable()
    console = log.console()
    if beacon is not None and not settings.peers and settings.model is None:
        known = not settings.insecure and was_member(settings.state_dir)
        found = await find_peer(beacon, console, member=known)
        if found is not None:
            settings = dataclasses.replace(settings, peers=(parse_peer(found),))
    node = Node(settings)
    log.bind(generation=node.generation)
    api_scope, api_ended = trio.CancelScope(), trio.Event()

    async def api(*, task_status: trio.TaskStatus[ApiAddresses]) -> None:
        with api_scope:
            await serve_api(
                node, settings.socket_path, settings.http, api_key=settings.api_key, task_status=task_status
            )
        api_ended.set()

    async def stop_api() -> None:
        api_scope.cancel()
        await api_ended.wait()

    node.before_stop = stop_api
    async with trio.open_nursery() as nursery:
        addresses: ApiAddresses = await nursery.start(api)
        nursery.start_soon(_mind_signals, node, console)
        if settings.links_file is not None:
            nursery.start_soon(_mind_hangups, node, settings.links_file)
        nursery.start_soon(_announce, node, addresses.http, console, beacon)
        await node.run()
        nursery.cancel_scope.cancel()


def _leave_to_last() -> None:
    """Have no collection of garbage look again at what is here now: it lasts as long as the node.

    With torch and transformers that is half a million objects. A full collection that looked at them all would keep the
    event loop waiting for 0.4 s, now and then [measured].
    """
    gc.freeze()


async def _announce(node: Node, http: tuple[str, int] | None, console: Console, beacon: Beacon | None) -> None:
    with trio.CancelScope() as progress_scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_show_progress, node, console)
            await node.ready.wait()
            progress_scope.cancel()
    gc.collect()  # of what loading left, before it would last, too
    _leave_to_last()
    status = node.status()
    assert status.model is not None
    if beacon is not None and node.parts is not None:
        port = node.parts.endpoints.control_port
        await beacon.announce(port, status.model.name, status.model.digest, needs_token=status.secured)
    me = status.peers[0]
    console.print(f"[bold]{status.node}[/] serves [bold]{status.model.name}[/] on {node.settings.socket_path}")
    if http is not None:
        host, port = http
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        console.print(f"  page: {url}/      API: {url}/v1", markup=False, soft_wrap=True)
    console.print(
        f"  capacity for experts: {format_size(me.capacity_bytes)} of {format_size(status.model.expert_bytes_total)}"
    )
    console.print("  join from another box:")
    console.print(f"    {status.join_command}", style="bold", soft_wrap=True)
    console.print('  try it: meshmoe run "Once upon a time"      look: meshmoe status')


async def _show_progress(node: Node, console: Console) -> None:
    """What the node is doing until it serves: bars on a terminal, a line a step elsewhere."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bars: dict[str, int] = {}
        told: set[str] = set()
        while True:
            for transfer in node.status().transfers:
                what = transfer.what if transfer.source == "disk" else f"{transfer.what} from {transfer.source}"
                if not console.is_terminal and what not in told and transfer.total_bytes > 1 << 20:
                    console.print(f"{what} ({format_size(transfer.total_bytes)}) ...")
                    told.add(what)
                bar = bars.setdefault(what, progress.add_task(what) if what not in bars else bars.get(what, 0))
                progress.update(bar, completed=transfer.done_bytes, total=transfer.total_bytes)  # type: ignore[arg-type]
            await trio.sleep(0.1)


async def _mind_hangups(node: Node, topology: str) -> None:
    """Read the file of ``--links`` again at every SIGHUP; a link that is no longer in it is blocked."""
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            try:
                node.reshape_links(_emulated_links(topology, node.settings.node))
            except ConfigError as error:
                logging.getLogger("meshmoe").warning("the links stay as they are: %s", error)


async def _mind_signals(node: Node, console: Console) -> None:
    """The first signal leaves in good order, the second one at once."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        leaving = False
        async for _ in signals:
            if leaving or not node.ready.is_set():
                node.stop()
                raise KeyboardInterrupt
            leaving = True
            console.print("leaving (once more to stop at once) ...")

            async def leave() -> None:
                async with node.leave() as steps:
                    async for step in steps:
                        if step.remaining:
                            console.print(f"  {step.text}: {step.remaining} of {step.total} experts to go")

            node.spawn(leave)
