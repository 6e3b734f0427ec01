"""``meshmoe model``: what a checkpoint is and which boxes it fits; what names it."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console
from rich.table import Table

from meshmoe.cli.model_fetch import fetch
from meshmoe.core.config import Profile, parse_profile
from meshmoe.core.units import format_size
from meshmoe.node.data_files import read_data_file, shipped_names
from meshmoe.node.places import cache_dir

if TYPE_CHECKING:
    from meshmoe.model.source import WeightSource


class ProfileFit(msgspec.Struct):
    """How a model fits a kind of box.

    Attributes:
        profile: Its name in nodes/.
        description: Of the box.
        capacity_bytes: What it can use for experts.
        trunk_fits: Whether the trunk fits beside that; None where the profile does not say how much memory there is.
        share: Of all experts that one box holds.
        nodes_one_copy: Boxes of this kind that hold every expert once; None if the trunk does not fit.
        nodes_two_copies: Every expert twice, so that any one of them can die.
    """

    profile: str
    description: str
    capacity_bytes: int
    trunk_fits: bool | None
    share: float
    nodes_one_copy: int | None
    nodes_two_copies: int | None


class ModelInfo(msgspec.Struct):
    """What a checkpoint is; sizes are as stored.

    ``experts_here`` are those in the directory: all of them, unless it is a store with part of a model.
    """

    directory: str
    family: str
    dtype: str
    moe_layers: int
    experts_per_layer: list[int]
    top_k: int | None
    expert_bytes: list[int]
    expert_bytes_total: int
    experts_here: int
    experts_here_bytes: int
    trunk_here: bool
    trunk_bytes: int
    touched_bytes: int
    context_tokens: int
    fits: list[ProfileFit]


@click.group()
def model() -> None:
    """Look at a checkpoint, or get one."""


@model.command()
@click.argument("directory", type=click.Path(path_type=Path), required=False, metavar="[DIR]")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def info(directory: Path | None, as_json: bool) -> None:
    """Tell what a checkpoint is, what a node needs for it, and how many boxes of each profile hold it.

    DIR is a Hugging Face checkpoint, or what `meshmoe model fetch --part` has made, and then it tells how much of it is
    there; without it, the bundled model. Only headers are read.

    \b
      meshmoe model info
      meshmoe model info ~/models/Qwen3-30B-A3B
    """
    from meshmoe.model.bundled import bundled_model_dir
    from meshmoe.model.checkpoint import Checkpoint
    from meshmoe.model.store import PartialStore, is_store

    where = directory or bundled_model_dir()
    found = describe(PartialStore.open(where) if is_store(where) else Checkpoint.open(where))
    if as_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        _show(found)


@model.command()
@click.argument("directory", type=click.Path(path_type=Path), required=False, metavar="[DIR]")
@click.option(
    "--to", "target", type=click.Path(path_type=Path), metavar="FILE", help="Where to put it.  [default: show its name]"
)
def manifest(directory: Path | None, target: Path | None) -> None:
    """Write the description of a model, with the digests of all its parts, for boxes that fetch some of them.

    DIR is a checkpoint, read whole unless its digests are known, or what `meshmoe model fetch --part` has made. The
    model's name is printed: the digest of the description.

    \b
      meshmoe model manifest ~/models/Qwen3-30B-A3B --to qwen3.manifest
    """
    from meshmoe.model.bundled import bundled_model_dir
    from meshmoe.model.checkpoint import Checkpoint
    from meshmoe.model.store import PartialStore, is_store
    from meshmoe.model.unit_files import write_whole

    where = directory or bundled_model_dir()
    if is_store(where):
        found = PartialStore.open(where).manifest
    else:
        found = Checkpoint.open(where).manifest(cache_dir=cache_dir())
    if target is not None:
        write_whole(target, found.encode())
    click.echo(found.model_digest)


model.add_command(fetch)


def describe(checkpoint: WeightSource) -> ModelInfo:
    """What ``info`` shows; reads no weights."""
    from meshmoe.model.unit_names import UnitName

    here = [expert for expert in checkpoint.experts() if checkpoint.has_expert(expert)]
    layers = checkpoint.layout.layers
    total_bytes = sum(layer.expert_bytes * layer.n_experts for layer in layers)
    top_k = layers[0].top_k
    touched = checkpoint.trunk_bytes + sum(layer.expert_bytes * (layer.top_k or 0) for layer in layers)
    return ModelInfo(
        directory=str(checkpoint.directory),
        family=checkpoint.family,
        dtype=str(checkpoint.dtype).removeprefix("torch."),
        moe_layers=len(layers),
        experts_per_layer=[layer.n_experts for layer in layers],
        top_k=top_k,
        expert_bytes=[layer.expert_bytes for layer in layers],
        expert_bytes_total=total_bytes,
        experts_here=len(here),
        experts_here_bytes=sum(map(checkpoint.expert_bytes, here)),
        trunk_here=checkpoint.has_unit(UnitName("trunk")),
        trunk_bytes=checkpoint.trunk_bytes,
        touched_bytes=touched,
        context_tokens=checkpoint.context_length,
        fits=[
            _fit(name, parse_profile(*read_data_file("nodes", name, "profile")), total_bytes, checkpoint.trunk_bytes)
            for name in shipped_names("nodes")
        ],
    )


def _fit(name: str, profile: Profile, total_bytes: int, trunk_bytes: int) -> ProfileFit:
    capacity = profile.parsed_capacity()
    capacity_bytes = capacity.resolve(total_bytes) if capacity is not None else 0
    memory_bytes = profile.memory_bytes
    fits = None if memory_bytes is None else trunk_bytes <= memory_bytes - min(capacity_bytes, total_bytes)
    usable = capacity_bytes if fits is not False else 0
    share = min(1.0, usable / total_bytes)
    one = math.ceil(total_bytes / usable) if usable else None
    two = max(2, math.ceil(2 * total_bytes / usable)) if usable else None
    return ProfileFit(name, profile.description, capacity_bytes, fits, share, one, two)


def _show(found: ModelInfo) -> None:
    console = Console(highlight=False)
    experts = sorted(set(found.experts_per_layer))
    each = " or ".join(map(str, experts))
    sizes = " or ".join(format_size(size) for size in sorted(set(found.expert_bytes)))
    console.print(
        f"[bold]{Path(found.directory).name}[/]  {found.family} in {found.dtype}, context {found.context_tokens}"
    )
    top = f", {found.top_k} of them for each token" if found.top_k else ""
    total = format_size(found.expert_bytes_total)
    console.print(f"experts  {found.moe_layers} layers x {each}{top}; {sizes} each, {total} in all")
    if found.experts_here < sum(found.experts_per_layer):
        console.print(
            f"here     {found.experts_here} of {sum(found.experts_per_layer)} experts, "
            f"{format_size(found.experts_here_bytes)}"
        )
    console.print(
        f"trunk    {format_size(found.trunk_bytes)}, on every node{'' if found.trunk_here else '; NOT here yet'}"
    )
    if found.top_k:
        console.print(f"a token  reads {format_size(found.touched_bytes)} of weights, wherever they are")
    table = Table(title="boxes that hold every expert once, and twice (so that any one may die)", title_justify="left")
    for heading in ("profile", "for experts", "holds", "once", "twice"):
        table.add_column(heading, justify="left" if heading == "profile" else "right", no_wrap=True)
    table.add_column("box")
    for fit in found.fits:
        one = "trunk too large" if fit.nodes_one_copy is None else str(fit.nodes_one_copy)
        two = "-" if fit.nodes_two_copies is None else str(fit.nodes_two_copies)
        size = format_size(fit.capacity_bytes)
        table.add_row(fit.profile, size, f"{math.floor(fit.share * 100)}%", one, two, fit.description)
    console.print(table)
