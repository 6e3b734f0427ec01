"""Measures a model on the five domains with stock transformers: validation loss, and how routing differs by domain.

    python -m meshmoe.model.bundled.evaluate --corpus DIR [--model DIR] [--split val] [--windows 64] [--json]

Loss is in nats a token, in float32, on windows of 512 predicted tokens spread evenly over each domain's text.

Routing is counted on the same windows, a layer at a time, then averaged over layers.  *Entropy* is that of the
domain's expert calls as a share of the uniform distribution's: 1 means that the domain uses all experts alike.
*Coverage* answers what placement can gain: if a node keeps the 16 experts a layer that one domain calls most, what
share of a domain's calls does it serve itself?
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AutoModelForCausalLM

from meshmoe.model.bundled import bundled_model_dir
from meshmoe.model.bundled._corpus import DOMAINS, even_windows, load_tokens

WINDOW_TOKENS = 512
BATCH_ROWS = 8
KEPT_EXPERTS = 16
"""Half of the bundled model's 32 experts a layer."""


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        loss: Nats a token, by domain.
        entropy: Entropy of the expert calls as a share of uniform, by domain.
        coverage: ``coverage[held][asked]``: share of ``asked``'s calls that ``held``'s top 16 experts a layer serve.
    """

    loss: dict[str, float]
    entropy: dict[str, float]
    coverage: dict[str, dict[str, float]]


@torch.inference_mode()
def measure_domain(model: Any, windows: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Run one domain's windows through the model.

    Args:
        model: A stock transformers mixture-of-experts causal language model.
        windows: Int64 ids, ``[windows, WINDOW_TOKENS + 1]``.

    Returns:
        The mean loss a token, and how often each expert was called, int64 ``[layers, experts]``.
    """
    config = model.config
    calls = torch.zeros(config.num_hidden_layers, config.num_experts, dtype=torch.int64)
    loss_sum = 0.0
    for rows in torch.split(windows, BATCH_ROWS):
        output = model(input_ids=rows[:, :-1], output_router_logits=True, use_cache=False)
        logits = output.logits.flatten(0, 1).float()
        loss_sum += F.cross_entropy(logits, rows[:, 1:].flatten(), reduction="sum").item()
        for layer, router_logits in enumerate(output.router_logits):
            chosen = router_logits.topk(config.num_experts_per_tok, dim=-1).indices
            calls[layer] += torch.bincount(chosen.flatten(), minlength=config.num_experts)
    return loss_sum / windows[:, 1:].numel(), calls


def entropy_share(calls: torch.Tensor) -> float:
    """Return the mean over layers of the calls' entropy, as a share of the uniform distribution's.

    Args:
        calls: Calls an expert, ``[layers, experts]``.

    Returns:
        A number from 0 (one expert does everything) to 1 (all alike).
    """
    share = calls.double() / calls.sum(1, keepdim=True)
    entropy = -torch.special.xlogy(share, share).sum(1)
    return float(entropy.mean() / torch.tensor(calls.shape[1], dtype=torch.float64).log())


def coverage_share(held_by: torch.Tensor, asked_by: torch.Tensor, kept: int = KEPT_EXPERTS) -> float:
    """Return the share of one domain's calls that another domain's favourite experts serve.

    Args:
        held_by: Calls ``[layers, experts]`` of the domain that chooses which experts to keep.
        asked_by: Calls of the domain that is served.
        kept: Experts kept a layer.

    Returns:
        A share from 0 to 1, the mean over layers.
    """
    top = held_by.topk(min(kept, held_by.shape[1]), dim=1).indices
    return float((asked_by.gather(1, top).sum(1) / asked_by.sum(1)).mean())


def evaluate(model: Any, windows: dict[str, torch.Tensor]) -> Report:
    """Measure a model on every domain.

    Args:
        model: A stock transformers mixture-of-experts causal language model.
        windows: Each domain's windows.

    Returns:
        Loss and routing by domain.
    """
    measured = {domain: measure_domain(model, rows) for domain, rows in windows.items()}
    calls = {domain: counts for domain, (_, counts) in measured.items()}
    return Report(
        loss={domain: loss for domain, (loss, _) in measured.items()},
        entropy={domain: entropy_share(counts) for domain, counts in calls.items()},
        coverage={
            held: {asked: coverage_share(calls[held], asked_calls) for asked, asked_calls in calls.items()}
            for held in calls
        },
    )


def format_report(report: Report) -> str:
    """Lay a report out as Markdown tables.

    Args:
        report: What was measured.

    Returns:
        The text, with a line break at its end.
    """

    def row(name: str, values: Sequence[str]) -> str:
        return f"| {name} | {' | '.join(values)} |"

    domains = list(report.loss)
    head = [row("", domains), row("---", ["---"] * len(domains))]
    lines = [
        *head,
        row("validation loss, nats a token", [f"{report.loss[domain]:.3f}" for domain in domains]),
        row("routing entropy, share of uniform", [f"{report.entropy[domain]:.2f}" for domain in domains]),
        "",
        f"Share of a column's expert calls served by the row's top {KEPT_EXPERTS} experts a layer:",
        "",
        *head,
        *(row(held, [f"{report.coverage[held][asked]:.2f}" for asked in domains]) for held in domains),
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: Arguments in place of the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m meshmoe.model.bundled.evaluate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--corpus", type=Path, required=True, help="directory of DOMAIN.SPLIT.txt.xz")
    parser.add_argument("--model", type=Path, help="checkpoint directory; the bundled model if absent")
    parser.add_argument("--split", choices=("val", "train"), default="val", help="which text to measure on")
    parser.add_argument("--windows", type=int, default=64, help="the most windows a domain")
    parser.add_argument("--cache", type=Path, help="directory in which to keep the encoded text")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(argv)
    directory = options.model or bundled_model_dir()
    tokens = load_tokens(options.corpus, directory / "tokenizer.json", options.split, options.cache)
    windows = {domain: even_windows(tokens[domain], WINDOW_TOKENS + 1, options.windows) for domain in DOMAINS}
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    report = evaluate(model.eval(), windows)
    sys.stdout.write(json.dumps(asdict(report), indent=1) + "\n" if options.json else format_report(report))


if __name__ == "__main__":
    main()
