"""What running nodes come to that place for drafts: `python -m tests.placement.live.drafted [DIRECTORY]`.

Three nodes, recorded routing, 75 seconds of virtual time at 15 tokens a second (`tests.placement.live.used`), once
without drafts and once with drafts that are as long and as often right as `meshmoe.placement.drafted` says of the
present plan. With the directory of the bundled model the engine writes texts with the experts where the plans put
them, by the clock of `meshmoe bench draft-cells`.
"""

import sys
from pathlib import Path

import click
import numpy as np
import trio

from meshmoe.bench import draft_cells
from meshmoe.bench.placement import KINDS
from meshmoe.engine.drafts.mode import OFF
from meshmoe.engine.engine import EngineLimits, open_engine
from meshmoe.engine.model import load_moe_model
from meshmoe.engine.pool import ExpertPool
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.loading import load_expert
from tests.placement.live.used import plans_without_and_for_drafts

TEXTS, TOKENS = 4, 40


async def measure(directory, found):
    """Tokens a second that the engine writes, off and auto, for each plan."""
    checkpoint = Checkpoint.open(directory)
    model, whole = load_moe_model(checkpoint, decode="lean"), ExpertPool(1 << 50)
    for expert in model.experts:
        whole.add(expert, load_expert(checkpoint, expert, model.dtype))
    texts = range(draft_cells.WARM_TEXTS + TEXTS)
    async with open_engine(model, whole, limits=EngineLimits(drafts=OFF)) as alone:
        asked = [[await draft_cells._text(alone, kind, number, TOKENS) for number in texts] for kind in KINDS]
        for (link, redundancy), results in found.items():
            for name, (holders, _) in zip(("without drafts", "for drafts"), results, strict=True):
                pools = [draft_cells._pool(whole, held) for held in holders]
                cells = [
                    await draft_cells._measure_cell(
                        model, pools, alone, asked, draft_cells._Cell(link, redundancy, name, mode)
                    )
                    for mode in ("off", "auto")
                ]
                speeds = " | ".join(f"{cell.tokens_per_s:.1f}" for cell in cells)
                rounds = " / ".join(f"{cell.rounds_per_token:.2f}" for cell in cells)
                same = all(cell.same for cell in cells)
                click.echo(f"| {redundancy} | {link} | {name} | {speeds} | {rounds} | {same} |")


def main(directory):
    found = {}
    for link in ("wan", "wifi", "edge"):
        for redundancy in (1.2, 1.5):
            found[link, redundancy] = plans_without_and_for_drafts(link, redundancy)
            predicted = [1e3 * np.mean([one.mean_s for one in bills]) for _, bills in found[link, redundancy]]
            click.echo(f"predicted ms a token, {link} {redundancy}: {predicted[0]:.1f} {predicted[1]:.1f}")
    if directory is not None:
        click.echo(
            "| redundancy | link | placed | off, tok/s | auto, tok/s | rounds a token, off / auto | same tokens |"
        )
        click.echo("|---|---|---|---|---|---|---|")
        trio.run(measure, Path(directory), found)


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else None)
