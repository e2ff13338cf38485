"""The ablation of the paper (Table 3, Figure 1), shrunk: SupNet-M on part of CIFAR-10 at 16x16.

    PGNAS_DATA=folder python bench/ablation.py --seeds 0 1 2

The folder holds CIFAR-10 unpacked as cifar10/{train,test}/<class>/<image>. The first 1,500 training images and 400 test
images of each class are brought to 16x16 once; then it is `pgnas study ablation --preset paper/cifar10-M --scale 3%` on
them with the settings below. An interrupted bench goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch

from pgnas import load_data
from pgnas.console import make_reporter
from pgnas.presets import PRESETS, parse_scale, scaled
from pgnas.stages.finetuning import FinetuneSettings
from pgnas.stages.studies import Ablation, run_study

TRAIN, TEST = 1_500, 400
"""Images of each class."""
SETTINGS = {"epochs": 2, "lr": 0.05, "logit_lr": 0.03, "length_scale_sq": 200.0, "candidates": 24, "compile": "off"}
"""Beside the preset's. Few steps need faster weights and logits. The weight term l^2 pi |m|^2 / N of the paper's net is
kept about the same: with a twelfth of the width |m|^2 of an operation is about a twelfth, and N is 0.27 of the paper's,
so that l^2 = 50 becomes 12 * 0.27 * 50 = 162, rounded up to 200."""


def main() -> None:
    """Do the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=SETTINGS["epochs"])
    parser.add_argument("--logit-lr", type=float, default=SETTINGS["logit_lr"])
    parser.add_argument("--candidates", type=int, default=SETTINGS["candidates"])
    parser.add_argument("--images", type=int, default=TRAIN, help="training images of each class")
    parser.add_argument("--length-scale-sq", type=float, default=SETTINGS["length_scale_sq"])
    parser.add_argument("--finetune-epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/ablation"))
    arguments = parser.parse_args()
    data = small_cifar(arguments.out, arguments.images)
    asked = {name: getattr(arguments, name) for name in ("epochs", "logit_lr", "candidates", "length_scale_sq")}
    given = SETTINGS | asked | {"data": str(data), "out": str(arguments.out / "study")}
    preset = scaled(PRESETS["paper/cifar10-M"].values(), parse_scale("3%"))
    tuned = FinetuneSettings(epochs=arguments.finetune_epochs, lr=0.01) if arguments.finetune_epochs else None
    reporter = make_reporter()
    result = run_study(Ablation(tuned), preset, given, seeds=arguments.seeds, progress=reporter)
    reporter.close()
    print("\n".join(result.summary()))


def small_cifar(out: Path, count: int) -> Path:
    """The images, so many of each class in training, as an .npz file, made if it is not there."""
    file = out / f"cifar16-{count}.npz"
    if file.exists():
        return file
    home = os.environ.get("PGNAS_DATA")
    if not home or not (Path(home) / "cifar10").is_dir():
        sys.exit("bench ablation: skipped, set PGNAS_DATA to a folder that holds cifar10/")
    whole = load_data(str(Path(home) / "cifar10"), image_size=16)
    train = [whole.train, whole.select, whole.estimate]
    images, labels = (torch.cat([getattr(part, name) for part in train]) for name in ("images", "labels"))
    arrays = _first(images, labels, count) + _first(whole.test.images, whole.test.labels, TEST)
    out.mkdir(parents=True, exist_ok=True)
    np.savez(file, **dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True)))
    return file


def _first(images: torch.Tensor, labels: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of each class, (N, 16, 16, 3), and their labels."""
    chosen = torch.cat([(labels == label).nonzero()[:count, 0] for label in labels.unique()])
    return images[chosen].permute(0, 2, 3, 1).contiguous().numpy(), labels[chosen].numpy()


if __name__ == "__main__":
    main()
