"""How far can a ranking be trusted: accuracy and loss of the same candidates on two halves of the held-out images.

    python bench/reliability.py RUN RUN…

Each RUN is a run folder whose candidates are ranked; nothing in it is changed. The first half is that on which they
were ranked, the second the half that no selection sees; each candidate's network is run on it without fine-tuning,
BatchNorm re-estimated if the ranking did so. "rank" is Spearman's correlation of the two halves' scores, "tells
accuracy" Pearson's correlation of the first half's score with the second half's accuracy.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from pgnas.nn import extract_small
from pgnas.progress import SilentReporter
from pgnas.run_folder import RunFolder
from pgnas.stages.candidates import Candidate
from pgnas.stages.context import Context


def main() -> None:
    """A row a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    arguments = parser.parse_args()
    print("| run | candidates | accuracy: rank | loss: rank | accuracy tells accuracy | loss tells accuracy |")
    print("|---|---|---|---|---|---|")
    for run in arguments.runs:
        first, second = halves(run)
        told = [np.corrcoef(first[:, column], second[:, 0])[0, 1] for column in (0, 1)]
        agreed = [spearmanr(first[:, column], second[:, column]).statistic for column in (0, 1)]
        shown = " | ".join(f"{value:.2f}" for value in (*agreed, told[0], -told[1]))
        print(f"| {run.name} | {len(first)} | {shown} |", flush=True)


def halves(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and loss of every candidate on either half, (candidates, 2) each."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(run, Path(place) / "run", ignore=shutil.ignore_patterns("checkpoints")))
        with RunFolder.open(copy) as folder:
            context = Context(folder, SilentReporter())
            candidates = [Candidate.from_row(row) for row in folder.read_lines("candidates.jsonl")]
            score = context.recipe.scorer(context.held_out(context.data.estimate), context.ranking_calibration())
            again = [score(extract_small(context.posterior, c.architecture).module) for c in candidates]
    first = [(c.score.metric, c.score.loss) for c in candidates if c.score is not None]
    return np.array(first), np.array([(score.metric, score.loss) for score in again])


if __name__ == "__main__":
    main()
