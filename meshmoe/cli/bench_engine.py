"""``meshmoe bench kernels``, ``decode``, ``calls`` and ``make-model``: the engine's benches."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
import psutil

from meshmoe.core.errors import ConfigError
from meshmoe.core.links import LINK_PRESETS

# What measures is imported by the commands, because it needs torch, which takes seconds to import.


def _progress(words: str) -> None:
    click.echo(words, err=True)


def _write(figures: Sequence[msgspec.Struct], table: str, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.encode({"load": psutil.getloadavg(), "figures": figures}).decode() + "\n")
    else:
        click.echo(table)
        click.echo(f"\nload of this machine: {', '.join(f'{load:.1f}' for load in psutil.getloadavg())}")


_turns = click.option("--turns", type=click.IntRange(1), default=5, show_default=True, help="Medians of this many.")
_json = click.option("--json", "as_json", is_flag=True, help="All numbers, for programs.")


@click.command()
@_turns
@click.option("--pool-mib", type=click.IntRange(1), default=512, show_default=True, help="Weights to go through.")
@_json
def kernels(turns: int, pool_mib: int, as_json: bool) -> None:
    """Compare one expert's kernels with torch and with the speed of memory, one thread, in turns."""
    import torch

    from meshmoe.bench_engine.kernels import SHAPES, kernel_table, measure_kernels

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    figures = measure_kernels(turns, pool_mib << 20, SHAPES, _progress)
    _write(figures, kernel_table(figures), as_json)


@click.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Checkpoint; may be repeated.  [default: the bundled one]",
)
@click.option(
    "--dtype", type=click.Choice(["auto", "bfloat16", "float16", "float32"]), default="auto", show_default=True
)
@click.option("--tokens", type=click.IntRange(8), default=256, show_default=True, help="To write in a turn.")
@click.option("--context", type=click.IntRange(1), default=16, show_default=True, help="Tokens of the prompt.")
@_turns
@_json
def decode(models: tuple[Path, ...], dtype: str, tokens: int, context: int, turns: int, as_json: bool) -> None:
    """Compare the lean decode path with the generic one and with the speed of memory, one thread, in turns."""
    import torch

    import meshmoe.model.bundled
    from meshmoe.bench_engine.decode import decode_table, measure_decode

    torch.set_num_threads(1)
    bundled = Path(meshmoe.model.bundled.__file__).parent / "edge-12m"
    number_type = None if dtype == "auto" else getattr(torch, dtype)
    figures = [
        measure_decode(directory, number_type, tokens=tokens, context=context, turns=turns, progress=_progress)
        for directory in models or (bundled,)
    ]
    _write(figures, decode_table(figures), as_json)


@click.command()
@click.option("--streams", multiple=True, type=click.IntRange(1, 64), default=(1, 16), show_default=True)
@click.option("--layers", type=click.IntRange(1, 48), default=48, show_default=True, help="Fewer fit a smaller card.")
@_turns
@_json
def cuda(streams: tuple[int, ...], layers: int, turns: int, as_json: bool) -> None:
    """Compare the decode step on an NVIDIA card with transformers, on random weights of Qwen3-30B-A3B's shape."""
    from meshmoe.bench_engine.cuda import cuda_table, measure_cuda

    figures = measure_cuda(streams, layers, turns, _progress)
    _write(figures, cuda_table(figures), as_json)


@click.command()
@_turns
@click.option("--rounds", type=click.IntRange(100), default=1000, show_default=True, help="Round trips in a turn.")
@_json
def calls(turns: int, rounds: int, as_json: bool) -> None:
    """Time an expert call of 8 KiB on loopback, from raw ZeroMQ up to two whole nodes, in turns."""
    import torch

    from meshmoe.bench_engine.calls import call_table, measure_calls

    torch.set_num_threads(1)
    figure = measure_calls(rounds, turns, _progress)
    _write([figure], call_table(figure), as_json)


@click.command()
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Checkpoint.  [default: the bundled one]",
)
@click.option("--share", type=click.FloatRange(0.0, 1.0), default=0.4, show_default=True, help="Of experts held.")
@click.option("--rtt-ms", "rtts_ms", type=float, multiple=True, default=(0.3, 1.2, 5.0, 20.0), show_default=True)
@click.option("--drafts", "modes", multiple=True, default=("off", "2", "4", "6", "lookup", "auto"), show_default=True)
@click.option("--tokens", type=click.IntRange(8), default=128, show_default=True, help="To write for each prompt.")
@_turns
@_json
def drafts(
    model: Path | None,
    share: float,
    rtts_ms: tuple[float, ...],
    modes: tuple[str, ...],
    tokens: int,
    turns: int,
    as_json: bool,
) -> None:
    """Compare drafts with none on links of several round trips, for two ways to hold the same share of experts."""
    import torch

    import meshmoe.model.bundled
    from meshmoe.bench_engine.drafts import drafts_table, measure_drafts

    torch.set_num_threads(1)
    directory = model or Path(meshmoe.model.bundled.__file__).parent / "edge-12m"
    figures = measure_drafts(
        directory, share=share, rtts_ms=rtts_ms, modes=modes, tokens=tokens, turns=turns, progress=_progress
    )
    _write(figures, drafts_table(figures), as_json)


@click.command("draft-cells")
@click.option("--link", "links", multiple=True, type=click.Choice(list(LINK_PRESETS)), help="[default: all]")
@click.option("--redundancy", "redundancies", multiple=True, type=click.FloatRange(1.0, 3.0), default=(1.2, 1.5))
@click.option("--drafts", "modes", multiple=True, default=("off", "2", "4", "6", "lookup", "auto"), show_default=True)
@click.option("--policy", "policies", multiple=True, default=("meshmoe",), show_default=True, help="Of placement.")
@click.option("--texts", type=click.IntRange(1), default=8, show_default=True, help="Of each of three nodes.")
@click.option("--tokens", type=click.IntRange(8), default=64, show_default=True, help="Of each text.")
@_json
def draft_cells(
    links: tuple[str, ...],
    redundancies: tuple[float, ...],
    policies: tuple[str, ...],
    modes: tuple[str, ...],
    texts: int,
    tokens: int,
    as_json: bool,
) -> None:
    """Compare ways to draft over links and redundancies, with the bundled model's experts where the planner puts them.

    Links are reckoned, not waited for, and computing counts in processor time: other work hardly disturbs the figures.
    """
    import torch

    from meshmoe.bench.draft_cells import DraftCells, draft_cells_table, measure_draft_cells
    from meshmoe.bench.passes import ForDrafts
    from meshmoe.model.bundled import bundled_model_dir
    from meshmoe.placement.policies import all_policies

    known = [*(policy.name for policy in all_policies()), ForDrafts.name]
    if unknown := sorted(set(policies) - set(known)):
        raise ConfigError(f"--policy: there is no {unknown[0]}: give one of {', '.join(known)}")
    torch.set_num_threads(1)
    wanted = DraftCells(links or tuple(LINK_PRESETS), redundancies, policies, modes, texts, tokens)
    figures = measure_draft_cells(bundled_model_dir(), "edge-12m", wanted, _progress)
    _write(figures, draft_cells_table(figures), as_json)


@click.command("make-model")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--shape",
    "name",
    type=click.Choice(["bench-1.7b", "qwen3-30b"]),
    default="bench-1.7b",
    show_default=True,
    help="3.1 GiB, or Qwen3-30B-A3B's 57 GiB.",
)
def make_model(directory: Path, name: str) -> None:
    """Write a random model for benches to DIRECTORY."""
    from meshmoe.model.bench_checkpoint import BENCH_SHAPES, make_bench_checkpoint

    make_bench_checkpoint(directory, BENCH_SHAPES[name])
