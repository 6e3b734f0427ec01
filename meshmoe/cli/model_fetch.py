"""``meshmoe model fetch``: a whole checkpoint from a hub, or the trunk and some experts of it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from meshmoe.core.config import Capacity, parse_capacity, parse_profile
from meshmoe.core.errors import CheckpointError, ConfigError, WireError
from meshmoe.core.ids import ExpertId, node_id
from meshmoe.core.units import format_size
from meshmoe.node.data_files import read_data_file
from meshmoe.node.places import data_dir
from meshmoe.node.settings import capacity_of, default_node_name

if TYPE_CHECKING:
    from meshmoe.model.layout import Layout
    from meshmoe.model.manifest import Manifest

Choose = Callable[["Layout"], Collection[ExpertId]]

_LINE_BYTES = 1 << 30
"""How often progress is told where there is no terminal."""


@click.command()
@click.argument("name")
@click.option("--to", "target", type=click.Path(path_type=Path), metavar="DIR", help="Where to put it.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit.  [default: the main branch]")
@click.option("--part", metavar="K/N", help="Trunk and the K-th of N parts of the experts; 2-3/4 is two of four.")
@click.option("--capacity", metavar="SIZE", help="Trunk and as many experts as that: 6GiB, or 40% of the model's.")
@click.option("--profile", metavar="FILE", help="As --capacity, with what a box of this profile has for experts.")
@click.option("--trunk-only", is_flag=True, help="No expert at all.")
@click.option("--name", "node", metavar="NAME", help="Of the node, with --capacity.  [default: the host name]")
@click.option(
    "--manifest",
    "manifest_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What `meshmoe model manifest` wrote on a box that has read the whole model: spares reading all of it here.",
)
def fetch(
    name: str,
    target: Path | None,
    revision: str | None,
    part: str | None,
    capacity: str | None,
    profile: str | None,
    trunk_only: bool,
    node: str | None,
    manifest_file: Path | None,
) -> None:
    """Get the model NAME (OWNER/NAME) from the Hugging Face hub, and go on where an earlier try ended.

    Only what a node uses is fetched. $HF_ENDPOINT names another hub, $HF_TOKEN a key. With --part, --capacity,
    --profile or --trunk-only, only those weights are kept. Unless there is a manifest, all others are read too, once,
    for their digests, and not kept.

    \b
      meshmoe model fetch Qwen/Qwen3-30B-A3B
      meshmoe model fetch Qwen/Qwen3-30B-A3B --to /srv/models/qwen3
      meshmoe model fetch Qwen/Qwen3-30B-A3B --part 1/3
      meshmoe model fetch Qwen/Qwen3-30B-A3B --part 2/3 --manifest qwen3.manifest
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    choose = _choice(part, capacity, profile, trunk_only, node)
    directory = target or data_dir() / "models" / name.rsplit("/", 1)[-1]
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if choose is not None:
        _fetch_parts(name, revision, directory, choose, manifest_file, console)
    elif manifest_file is not None:
        raise ConfigError("--manifest is for --part, --capacity, --profile or --trunk-only: a whole model needs none")
    else:
        _fetch_whole(name, revision, directory, console)


def _choice(
    part: str | None, capacity: str | None, profile: str | None, trunk_only: bool, node: str | None
) -> Choose | None:
    """Which experts are wanted; None for the whole model."""
    from meshmoe.model.portions import experts_of_part, experts_that_fit, parse_part

    if (part is not None) + (capacity is not None or profile is not None) + trunk_only > 1:
        raise ConfigError("--part, --capacity (or --profile) and --trunk-only are three ways to say it: give one")
    if node is not None and capacity is None and profile is None:
        raise ConfigError("--name goes with --capacity or --profile")
    if trunk_only:
        return lambda _: ()
    if part is not None:
        wanted = parse_part(part)
        return lambda layout: experts_of_part(layout, wanted)
    room = _room(capacity, profile)
    if room is None:
        return None
    me = node_id(node) if node is not None else default_node_name()
    return lambda layout: experts_that_fit(layout, room, me)


def _room(capacity: str | None, profile: str | None) -> Capacity | None:
    box = parse_profile(*read_data_file("nodes", profile, "--profile")) if profile is not None else None
    room = capacity_of(parse_capacity(capacity) if capacity is not None else None, box)
    if room is None and profile is not None:
        raise ConfigError(f"--profile: {profile} does not say a capacity: give --capacity")
    return room


def _fetch_whole(name: str, revision: str | None, directory: Path, console: Console) -> None:
    from meshmoe.cli.model import describe
    from meshmoe.model.hub import fetch, look_up

    directory.mkdir(parents=True, exist_ok=True)
    wanted = look_up(name, revision, directory)
    skipped = f", {format_size(wanted.skipped_bytes)} of other files left out" if wanted.skipped_bytes else ""
    console.print(
        f"{name} at {wanted.commit[:12]}: {len(wanted.files)} files, {format_size(wanted.size_bytes)}{skipped}"
    )
    found = describe(fetch(wanted, directory))
    experts = sum(found.experts_per_layer)
    console.print(f"complete: {experts} experts in {found.moe_layers} layers; begin a mesh with it:")
    click.echo(f"meshmoe join --model {directory}")


def _fetch_parts(
    name: str, revision: str | None, directory: Path, choose: Choose, manifest_file: Path | None, console: Console
) -> None:
    from meshmoe.model.checkpoint import Checkpoint
    from meshmoe.model.hub import look_up
    from meshmoe.model.hub_parts import fetch_parts, look_inside, work_dir
    from meshmoe.model.store import PartialStore, is_store
    from meshmoe.model.store_lock import lock_directory
    from meshmoe.model.tensor_files import INDEX_FILE, SINGLE_FILE

    if any((directory / file).exists() for file in (SINGLE_FILE, INDEX_FILE)):
        Checkpoint.open(directory)
        raise CheckpointError(f"{directory} has the whole model already: give another place with --to")
    directory.mkdir(parents=True, exist_ok=True)
    with _Bars(console) as progress:
        lock_directory(directory, progress)
        manifest = _manifest_from(manifest_file)
        if manifest is None and is_store(directory):
            manifest = PartialStore.open(directory).manifest
        probe = directory / ".hub"
        probe.mkdir(exist_ok=True)
        model = look_up(name, revision, probe)
        work = work_dir(directory, model.commit)
        if work.exists():
            shutil.rmtree(probe)
        else:
            probe.rename(work)
        parts = look_inside(model, work, choose)
        experts = len(parts.remote.layout.experts())
        first = "" if manifest is not None else f"; all {format_size(parts.total_bytes)} are read once for the digests"
        console.print(
            f"{name} at {model.commit[:12]}: trunk and {len(parts.wanted)} of {experts} experts, "
            f"{format_size(parts.wanted_bytes)}{first}"
        )
        store = fetch_parts(model, parts, directory, manifest, progress)
    here = len(store.stored_experts())
    rest = "" if here == experts else f", of {experts}: other boxes or a later fetch must bring the rest"
    console.print(f"model {store.model_digest}: here are trunk and {here} experts{rest}")
    click.echo(f"meshmoe join --model {directory}")


def _manifest_from(path: Path | None) -> Manifest | None:
    from meshmoe.model.manifest import decode_manifest

    if path is None:
        return None
    try:
        return decode_manifest(path.read_bytes())
    except (WireError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be used as a manifest: {reason}") from error


class _Bars:
    """Progress as a bar on a terminal, a line a gigabyte elsewhere."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
        self._console = console
        self._progress = Progress(
            *columns,
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, int] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, what: str, done_bytes: int, total_bytes: int) -> None:
        if not self._console.is_terminal:
            step = done_bytes // _LINE_BYTES
            if step > self._told.get(what, 0):
                self._told[what] = step
                self._console.print(f"{what}: {format_size(done_bytes)} of {format_size(total_bytes)}")
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total_bytes)
        self._progress.update(self._tasks[what], completed=done_bytes)
