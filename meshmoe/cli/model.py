"""``meshmoe model``: what a checkpoint is and which boxes it fits; getting one."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from meshmoe.core.config import Profile, parse_profile
from meshmoe.core.units import format_size
from meshmoe.node.data_files import read_data_file, shipped_names
from meshmoe.node.places import data_dir


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
    """What a checkpoint is; sizes are as stored."""

    directory: str
    family: str
    dtype: str
    moe_layers: int
    experts_per_layer: list[int]
    top_k: int | None
    expert_bytes: list[int]
    expert_bytes_total: int
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

    DIR is a Hugging Face checkpoint; without it, the bundled model. Only its headers are read.

    \b
      meshmoe model info
      meshmoe model info ~/models/Qwen3-30B-A3B
    """
    from meshmoe.model.bundled import bundled_model_dir
    from meshmoe.model.checkpoint import Checkpoint

    found = describe(Checkpoint.open(directory or bundled_model_dir()))
    if as_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        _show(found)


@model.command()
@click.argument("name")
@click.option("--to", "target", type=click.Path(path_type=Path), metavar="DIR", help="Where to put it.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit.  [default: the main branch]")
def fetch(name: str, target: Path | None, revision: str | None) -> None:
    """Get the model NAME (OWNER/NAME) from the Hugging Face hub, and go on where an earlier try ended.

    Only what a node uses is fetched. $HF_ENDPOINT names another hub, $HF_TOKEN a key.

    \b
      meshmoe model fetch Qwen/Qwen3-30B-A3B
      meshmoe model fetch Qwen/Qwen3-30B-A3B --to /srv/models/qwen3
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from meshmoe.model.hub import fetch, look_up

    directory = target or data_dir() / "models" / name.rsplit("/", 1)[-1]
    directory.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    wanted = look_up(name, revision, directory)
    skipped = f", {format_size(wanted.skipped_bytes)} of other files left out" if wanted.skipped_bytes else ""
    console.print(
        f"{name} at {wanted.commit[:12]}: {len(wanted.files)} files, {format_size(wanted.size_bytes)}{skipped}"
    )
    checkpoint = fetch(wanted, directory)
    found = describe(checkpoint)
    experts = sum(found.experts_per_layer)
    console.print(f"complete: {experts} experts in {found.moe_layers} layers; begin a mesh with it:")
    click.echo(f"meshmoe join --model {directory}")


def describe(checkpoint: object) -> ModelInfo:
    """What ``info`` shows, from a checkpoint's headers."""
    from meshmoe.model.checkpoint import Checkpoint

    assert isinstance(checkpoint, Checkpoint)
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
    console.print(f"trunk    {format_size(found.trunk_bytes)}, on every node")
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
