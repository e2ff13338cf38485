"""Which held-out images each of many candidates of a finished search gets right, for bench/racing.py to replay.

    python bench/correctness.py RUN --candidates 400 --out correct.npz
    python bench/racing.py --matrix correct.npz

RUN is a run folder whose search is done. Candidates are drawn from its posterior under its caps (another seed than the
run's, the most probable one not among them), extracted, and run on both halves of the validation split without
fine-tuning, BatchNorm re-estimated if the run's ranking did so. An interrupted bench goes on where it was. The file
holds "correct" (candidates, images) and "units" (candidates, units), which units each keeps, both bool.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from pgnas.nn import extract_small
from pgnas.progress import SilentReporter
from pgnas.run_folder import RunFolder
from pgnas.run_folder.storage import atomic
from pgnas.stages.context import Context
from pgnas.stages.fitting import draw
from pgnas.stages.racing import units_kept

SAVE_EVERY = 10


def main() -> None:
    """Fill the matrix, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--candidates", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("correct.npz"))
    arguments = parser.parse_args()
    with RunFolder.open(arguments.run) as folder:
        context = Context(folder, SilentReporter())
        rows = _done(arguments.out)
        drawn = draw(
            context.posterior,
            arguments.candidates,
            context.caps,
            generator=torch.Generator().manual_seed(arguments.seed),
            shaper=context.recipe.shaper(context.posterior),
            with_mode=False,
        )
        print(f"{len(drawn)} distinct candidates")
        units = units_kept(drawn).numpy()
        judge = _judge(context, context.ranking_calibration())
        if rows:  # a file of an earlier bench may lack the units
            _save(arguments.out, rows, units)
        for place in range(len(rows), len(drawn)):
            rows.append(judge(extract_small(context.posterior, drawn[place].architecture).module))
            if (place + 1) % SAVE_EVERY == 0 or place + 1 == len(drawn):
                _save(arguments.out, rows, units)
                means = np.stack(rows).mean(1)
                print(f"{place + 1}: accuracy {means.mean():.4f}, sd {means.std():.4f}", flush=True)


def _judge(context: Context, calibration: list | None):
    """What one extracted network gets right, bool (images,)."""
    select, estimate = context.data.select, context.data.estimate
    first = context.recipe.judge(lambda examples: context.held_out(select.take(examples)), calibration)
    second = context.recipe.judge(lambda examples: context.held_out(estimate.take(examples)), None)  # as it is by then

    def judge(network: torch.nn.Module) -> np.ndarray:
        found = first(network, torch.arange(len(select)))[0], second(network, torch.arange(len(estimate)))[0]
        return torch.cat(found).bool().numpy()

    return judge


def _done(path: Path) -> list[np.ndarray]:
    if not path.exists():
        return []
    with np.load(path, allow_pickle=False) as archive:
        return list(archive["correct"])


def _save(path: Path, rows: list[np.ndarray], units: np.ndarray) -> None:
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, correct=np.stack(rows), units=units[: len(rows)])


if __name__ == "__main__":
    sys.exit(main())
