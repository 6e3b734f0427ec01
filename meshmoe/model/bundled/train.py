"""Makes the bundled model: trains a small Qwen3-MoE on five domains, guided by larger or earlier models.

    python -m meshmoe.model.bundled.train --corpus DIR --teacher DIR --start DIR --out DIR --minutes M

The text is small (18.5 M tokens) and is seen many times, so the enemy is memorising.  Against it: a large weight decay,
dropout, and targets that are a blend of the text's next token and the teachers' mean distribution.
``--teacher`` may be given several times, or not at all; a teacher is any Qwen3-MoE with the same vocabulary.

The learning rate follows the clock: a short warm-up, then a cosine down to nothing when the minutes are over.  Runs on
CUDA with compiled layers and bfloat16 autocast, or, slowly, on a CPU in float32.
"""

import argparse
import logging
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from meshmoe.model.bundled._corpus import DOMAINS, BatchSampler, even_windows, load_tokens
from meshmoe.model.bundled._net import Net, load_checkpoint, save_checkpoint

__all__ = ["Recipe", "main", "train"]

logger = logging.getLogger(__name__)

CHECK_SECONDS = 60.0
"""How often validation loss is logged and a checkpoint written."""

LOG_STEPS = 500
WARMUP_STEPS = 200
GRADIENT_NORM_MAX = 1.0
VALIDATION_WINDOWS = 32
"""Windows a domain for the log; ``evaluate`` measures on more."""


@dataclass(frozen=True)
class Recipe:
    """What a run may vary; the defaults are those of the bundled model's first run.

    Attributes:
        rows: Windows a step.
        window: Tokens predicted a window.
        peak_lr: Learning rate after the warm-up.
        weight_decay: AdamW's decoupled decay of every matrix.
        dropout: Share of the embedding and of each residual addition that is dropped.
        distill: Weight of the teachers' distribution in the target; the rest is the text's next token.
        balance: Weight of the loss that keeps all experts in use.
        locality: Weight of the loss that concentrates each window's calls on some experts.
        locality_target: The concentration of a window's calls (see ``Experts.route``) from which that loss is zero.
        seed: Of fresh weights, windows and dropout.
    """

    rows: int = 64
    window: int = 512
    peak_lr: float = 1.5e-3
    weight_decay: float = 0.7
    dropout: float = 0.08
    distill: float = 0.5
    balance: float = 0.03
    locality: float = 0.0
    locality_target: float = 2.2
    seed: int = 0


def blended_loss(logits: Tensor, targets: Tensor, teachers: Sequence[Tensor], distill: float) -> tuple[Tensor, Tensor]:
    """Compare a network's logits with the next tokens and with the teachers' mean distribution.

    Args:
        logits: ``[rows, tokens, vocabulary]``.
        targets: The next tokens, ``[rows, tokens]``.
        teachers: Logits of every teacher.
        distill: Weight of the teachers.

    Returns:
        The loss to descend, and the plain cross-entropy for the log.
    """
    log_share = logits.flatten(0, 1).float().log_softmax(-1)
    plain = F.nll_loss(log_share, targets.flatten())
    if not teachers:
        return plain, plain.detach()
    share = torch.stack([teacher.flatten(0, 1).float().softmax(-1) for teacher in teachers]).mean(0)
    guided = -(share * log_share).sum(-1).mean()
    return distill * guided + (1 - distill) * plain, plain.detach()


def routing_loss(concentration: Tensor, recipe: Recipe) -> Tensor:
    """Ask that all experts are used over the batch, yet that each window keeps to some of them.

    Args:
        concentration: Every layer's concentration over the batch and over a window, ``[layers, 2]``.
        recipe: The weights of the two wishes.

    Returns:
        The loss, a scalar.
    """
    batch, window = concentration.unbind(1)
    return recipe.balance * batch.mean() + recipe.locality * F.relu(recipe.locality_target - window).mean()


def make_optimizer(net: Net, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW that decays matrices and leaves norms alone."""
    matrices = [parameter for parameter in net.parameters() if parameter.ndim >= 2]
    norms = [parameter for parameter in net.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(0.9, 0.95), fused=True)


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which products run in bfloat16; a CPU without matrix units is ten times slower with it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@torch.no_grad()
def validation_loss(net: Net, windows: dict[str, Tensor]) -> dict[str, float]:
    """Return the loss a token on every domain's windows, in the precision of training."""
    training = net.training
    net.eval()
    losses: dict[str, float] = {}
    for domain, rows in windows.items():
        total = 0.0
        for batch in torch.split(rows, 16):
            ids = batch.to(net.embed_tokens.weight.device)
            with autocast(ids.device):
                logits, _ = net(ids[:, :-1])
            total += F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum").item()
        losses[domain] = total / rows[:, 1:].numel()
    net.train(training)
    return losses


def learning_rate(recipe: Recipe, step: int, elapsed_share: float) -> float:
    """Return the rate for a step: linear warm-up, then a cosine over the run's time."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, elapsed_share)))
    return recipe.peak_lr * min(1.0, (step + 1) / WARMUP_STEPS) * (0.99 * cosine + 0.01)


class Trainer:
    """One network in training: its optimizer, its teachers and its supply of windows."""

    def __init__(self, net: Net, teachers: Sequence[Net], sampler: BatchSampler, recipe: Recipe) -> None:
        self.net, self.teachers, self.sampler, self.recipe = net, teachers, sampler, recipe
        self.optimizer = make_optimizer(net, recipe)
        self.device = net.embed_tokens.weight.device
        compiled = self.device.type == "cuda"
        self.run_loss = torch.compile(blended_loss, dynamic=False) if compiled else blended_loss
        for model in (net, *teachers) if compiled else ():
            model.compile_layers()
        for teacher in teachers:
            teacher.eval().requires_grad_(False)
        net.train()

    def step(self, rate: float) -> tuple[Tensor, Tensor]:
        """Draw a batch and descend once.

        Args:
            rate: The learning rate.

        Returns:
            The batch's cross-entropy, and its routing's mean concentration over the batch and over a window, both still
            on the device.
        """
        recipe = self.recipe
        window = self.sampler.draw(recipe.rows, recipe.window + 1)
        ids, targets = window[:, :-1], window[:, 1:]
        with autocast(self.device):
            with torch.no_grad():
                guides = [teacher(ids)[0] for teacher in self.teachers]
            logits, concentration = self.net(ids)
            loss, plain = self.run_loss(logits, targets, guides, recipe.distill)
        (loss + routing_loss(concentration, recipe)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), GRADIENT_NORM_MAX)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return plain, concentration.detach().mean(0)


def train(trainer: Trainer, windows: dict[str, Tensor], seconds: float, out: Path, like: Path) -> dict[str, float]:
    """Train until the time is over, writing a checkpoint at every check.

    Args:
        trainer: The network and what it learns from.
        windows: Validation windows by domain.
        seconds: Length of the run, not counting compilation.
        out: Where checkpoints go, each over the last.
        like: A checkpoint of the same shape, for configuration and tokenizer.

    Returns:
        The last validation losses.
    """
    recipe, step = trainer.recipe, 0
    logger.info("start: %s", _line(validation_loss(trainer.net, windows)))
    trainer.step(0.0)[0].item()  # compiles; at rate zero it changes no weight
    started = checked = time.monotonic()
    while (elapsed := time.monotonic() - started) < seconds:
        plain, concentration = trainer.step(learning_rate(recipe, step, elapsed / seconds))
        step += 1
        if step % LOG_STEPS == 0:
            speed = step * recipe.rows * recipe.window / (time.monotonic() - started)
            batch, one = concentration.tolist()
            state = (step, elapsed, plain.item(), batch, one, speed)
            logger.info("step %d, %.0f s: loss %.3f, concentration %.2f batch, %.2f window, %.0f tokens/s", *state)
        if time.monotonic() - checked > CHECK_SECONDS:
            save_checkpoint(trainer.net, out, like)
            logger.info("step %d: %s", step, _line(validation_loss(trainer.net, windows)))
            checked = time.monotonic()
    save_checkpoint(trainer.net, out, like)
    losses = validation_loss(trainer.net, windows)
    tokens = step * recipe.rows * recipe.window
    logger.info("end, %d steps, %.1f M tokens: %s", step, tokens / 1e6, _line(losses))
    return losses


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: Arguments in place of the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m meshmoe.model.bundled.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--corpus", type=Path, required=True, help="directory of DOMAIN.{train,val}.txt.xz")
    parser.add_argument("--teacher", type=Path, action="append", default=[], help="checkpoint; may be repeated")
    parser.add_argument("--start", type=Path, required=True, help="checkpoint to start from: its shape is the model's")
    parser.add_argument("--fresh", action="store_true", help="draw new weights, and take only the shape from --start")
    parser.add_argument("--out", type=Path, required=True, help="where the checkpoint goes")
    parser.add_argument("--minutes", type=float, required=True, help="length of the run, compilation not counted")
    parser.add_argument("--cache", type=Path, help="directory in which to keep the encoded text")
    for field in fields(Recipe):
        kind = int if isinstance(field.default, int) else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help="see Recipe")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    net = load_checkpoint(options.start, recipe.dropout)
    if options.fresh:
        net.initialise(torch.Generator().manual_seed(recipe.seed))
    teachers = [load_checkpoint(directory).to(device) for directory in options.teacher]
    tokenizer = options.start / "tokenizer.json"
    sampler = BatchSampler.create(load_tokens(options.corpus, tokenizer, "train", options.cache), device, recipe.seed)
    held_out = load_tokens(options.corpus, tokenizer, "val", options.cache)
    windows = {
        domain: even_windows(held_out[domain], recipe.window + 1, VALIDATION_WINDOWS).to(device) for domain in DOMAINS
    }
    trainer = Trainer(net.to(device), teachers, sampler, recipe)
    train(trainer, windows, 60 * options.minutes, options.out, options.start)


def _line(losses: dict[str, float]) -> str:
    return " ".join(f"{domain} {loss:.3f}" for domain, loss in losses.items())


if __name__ == "__main__":
    main()
