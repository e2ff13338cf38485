"""Is the posterior's average better calibrated than its best sample and than the plain full network of equal compute?

    PGNAS_DATA=folder python bench/ensemble.py --seeds 0 1 2

CIFAR-10 at 16x16, 12 epochs, group gates, no early decision; the plain full network is trained at the run's total
compute (supernet epochs and ranking). The average is over 16 samples of the posterior; "best sample" is the best of
these 16 by the very score compared, on the test images. Corrupted test images (at 16x16; deterministic) are told from
clean ones by the entropy of the prediction, and by mutual information: noise (Gaussian, deviation as a share of
the range), blur (Gaussian, deviation in pixels), contrast (factor about the image's mean), 2,000 images each.

An interrupted bench goes on where it was; each seed is one resumable run in two cells, the search and the full network.
--images takes a part of the training images, for a trial.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from pgnas.config import RunConfig
from pgnas.console import make_reporter
from pgnas.data import load_data
from pgnas.run_folder.storage import atomic
from pgnas.stages import run
from pgnas.stages.evaluating import evaluate

SIDE = 16
CORRUPTIONS = {
    "noise": (0.06, 0.12),
    "blur": (0.6, 1.0),
    "contrast": (0.5, 0.25),
}
CORRUPTED = 2_000  # test images of each kind and strength
LEAST_TRAINING = 10  # images a class in a file of corrupted ones, whose test split alone is used


def corrupt(images: Tensor, kind: str, strength: float) -> Tensor:
    """Corrupted copies of images, (N, 3, H, W) uint8."""
    if kind == "noise":
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * (255 * strength)
        return (images + noise).round_().clamp_(0, 255).to(torch.uint8)
    if kind == "blur":
        return tv.gaussian_blur(images, [5, 5], [strength, strength])
    mean = images.float().mean((1, 2, 3), keepdim=True)
    return ((images - mean) * strength + mean).round_().clamp_(0, 255).to(torch.uint8)


def prepare(out: Path, images: int | None) -> tuple[Path, list[str]]:
    """CIFAR-10 at 16x16 in one file, and a file for each corruption; made once."""
    home = os.environ.get("PGNAS_DATA")
    if not home or not (Path(home) / "cifar10").is_dir():
        sys.exit("bench ensemble: skipped, set PGNAS_DATA to a folder that holds cifar10/{train,test}/<class>/<image>")
    clean = out / ("cifar16.npz" if images is None else f"cifar16-{images}.npz")
    files = {(kind, s): out / f"{kind}-{s:g}.npz" for kind, strengths in CORRUPTIONS.items() for s in strengths}
    if not all(path.exists() for path in (clean, *files.values())):
        data = load_data(str(Path(home) / "cifar10"), image_size=SIDE, augment="off")
        splits = (data.train, data.select, data.estimate)
        train = torch.cat([split.head(len(split)) for split in splits])
        labels = torch.cat([split.labels for split in splits])
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:images]
        test, test_labels = data.test.head(len(data.test)), data.test.labels
        _save(clean, train[order], labels[order], test, test_labels)
        few = torch.cat([(labels == label).nonzero().flatten()[:LEAST_TRAINING] for label in labels.unique()])
        some = torch.randperm(len(test), generator=torch.Generator().manual_seed(1))[:CORRUPTED]
        for (kind, strength), path in files.items():
            _save(path, train[few], labels[few], corrupt(test[some], kind, strength), test_labels[some])
    return clean, [str(path) for path in files.values()]


def _save(path: Path, x_train: Tensor, y_train: Tensor, x_test: Tensor, y_test: Tensor) -> None:
    values = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{name: value.numpy() for name, value in values.items()})


def cell(seed: int, data: Path, corrupted: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """One seed: the search, the full network, their scores."""
    out = arguments.out / f"{data.stem}-{arguments.epochs}-{arguments.name}-seed{seed}"
    config = RunConfig(
        model=arguments.model,
        data=str(data),
        out=str(out),
        epochs=arguments.epochs,
        granularity="group",
        decide_at="never",
        prior=arguments.prior,
        max_macs=arguments.max_macs,
        baseline=("full",),
        seed=seed,
    )
    reporter = make_reporter()
    run(config, until="export", progress=reporter)
    result = evaluate(out, samples=arguments.samples, ood=corrupted, progress=reporter).values
    reporter.close()
    return {"seed": seed, "baseline_epochs": result["baselines"]["full"]["epochs"], **result["uncertainty"]}


def print_tables(rows: list[dict[str, Any]]) -> None:
    """Scores, then AUROCs, seed by seed and in the mean."""
    print("| seed | score | average | best sample | mean of samples | found | full |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        networks = row["networks"]
        for score in ("accuracy", "nll", "brier", "ece"):
            members = networks["ensemble"]["members"][score]
            best = max(members) if score == "accuracy" else min(members)
            shown = (networks["ensemble"][score]["value"], best, statistics.mean(members))
            shown += (networks["found"][score]["value"], networks["full"][score]["value"])
            print(f"| {row['seed']} | {score} | {' | '.join(f'{value:.4f}' for value in shown)} |")
        print(f"| {row['seed']} | distinct samples | {len(set(networks['ensemble']['members']['nll']))} | | | | |")
    print("\n| seed | corruption | average: entropy | average: mutual information | found: entropy | full: entropy |")
    print("|---|---|---|---|---|---|")
    told: list[tuple[float, ...]] = []
    for row in rows:
        for spec, apart in row["ood"].items():
            ensemble = apart["ensemble"]
            shown = (ensemble["entropy"], ensemble["mutual_information"])
            shown += (apart["found"]["entropy"], apart["full"]["entropy"])
            told.append(shown)
            print(f"| {row['seed']} | {Path(spec).stem} | {' | '.join(f'{value:.4f}' for value in shown)} |")
    means = (statistics.mean(column) for column in zip(*told, strict=True))
    print(f"| | mean | {' | '.join(f'{value:.4f}' for value in means)} |")


def main() -> None:
    """Run the seeds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--images", type=int)
    parser.add_argument("--model", default="multibranch-resnet:width=32,blocks=1")
    parser.add_argument("--prior")
    parser.add_argument("--max-macs")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/ensemble"))
    arguments = parser.parse_args()
    parts = (arguments.prior, arguments.max_macs and arguments.max_macs.strip("%"))
    arguments.name = "-".join(part for part in parts if part) or "default"
    arguments.out.mkdir(parents=True, exist_ok=True)
    data, corrupted = prepare(arguments.out, arguments.images)
    rows = []
    for seed in arguments.seeds:
        rows.append(cell(seed, data, corrupted, arguments))
        (arguments.out / f"results-{arguments.name}.json").write_text(json.dumps(rows, indent=2))
    print_tables(rows)


if __name__ == "__main__":
    main()
