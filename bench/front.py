"""A front from one search against one search a cap, each after the same total compute.

    PGNAS_DATA=folder python bench/front.py --total 20 --caps 20% 35% 50% 65% 80%

Compute is counted in epochs of the full network (multiply-adds x examples). The front's run, at the largest cap, has
what its points leave of the total (``--tuning`` each). Each of the single runs has all of it, or ``--single``: what the
run and one point have together is what went into one network. The folder holds CIFAR-10 as cifar10.tar or unpacked as
cifar10/{train,test}/<class>/<image>, read at 16x16; without it the digits of scikit-learn stand in. Everything is
resumable: an interrupted bench goes on.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import get_args

from cifar16 import find_cifar

from pgnas.amounts import parse_share
from pgnas.config import RunConfig
from pgnas.console import make_reporter
from pgnas.stages import run
from pgnas.stages.front import front
from pgnas.stages.front_settings import FrontSettings, Start


def main() -> None:
    """Make the front and the single searches, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--caps", nargs="+", default=["20%", "35%", "50%", "65%", "80%"])
    parser.add_argument("--total", type=int, default=20, help="epochs of the full network that everything may cost")
    parser.add_argument(
        "--tuning", type=int, default=2, help="what each point of the front may cost, in epochs of the full network"
    )
    parser.add_argument("--single", type=int, help="what each single search may cost instead of the total")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="of the forward pass")
    parser.add_argument("--start", default="larger", choices=get_args(Start), help="as of pgnas front")
    parser.add_argument(
        "--trunk", action="store_true", help="the run ends with its search, at the points' learning rate"
    )
    parser.add_argument("--model", default="multibranch-resnet:width=32,blocks=1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/front"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    points = make_front(arguments)
    rows = [{**point, "single": single(arguments, point["cap"])} for point in points]
    (arguments.out / "results.json").write_text(json.dumps(rows, indent=2))
    print("| cap | front: multiply-adds | spent | untrained: val. | val. | test | single: test | front - single |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['cap']} | {row['macs']:,} | {row['spent']:.2f} | {row['val_untrained']:.4f} "
            f"| {row['val_accuracy']:.4f} | {row['test_accuracy']:.4f} | {row['single']:.4f} "
            f"| {100 * (row['test_accuracy'] - row['single']):+.2f} points |"
        )


def settings(arguments: argparse.Namespace, name: str, *, budget: int, max_macs: str) -> RunConfig:
    """The settings that all searches share, and some of their own."""
    has_cifar = bool(os.environ.get("PGNAS_DATA"))
    return RunConfig(
        model=arguments.model,
        data=str(find_cifar(arguments.out)) if has_cifar else "digits",
        image_size=16 if has_cifar else None,
        out=str(arguments.out / f"{name}-{budget}-seed{arguments.seed}"),
        seed=arguments.seed,
        precision=arguments.precision,
        budget=str(budget),
        max_macs=max_macs,
    )


def make_front(arguments: argparse.Namespace) -> list[dict]:
    """One run and its points."""
    budget = arguments.total - arguments.tuning * len(arguments.caps)
    largest = max(arguments.caps, key=lambda cap: parse_share(cap, subject="--caps", otherwise="none"))
    config = settings(arguments, "trunk" if arguments.trunk else "front", budget=budget, max_macs=largest)
    wanted = FrontSettings(caps=tuple(arguments.caps), epochs=arguments.tuning, start=arguments.start)
    reporter = make_reporter()
    if arguments.trunk:
        run(
            replace(config, decide_at="never", lr_floor=wanted.first_lr(config.optimizer)),
            until="search",
            progress=reporter,
        )
    else:
        run(config, progress=reporter)
    found = front(config.out, wanted, progress=reporter)
    reporter.close()
    return [dict(point) for point in found.points]


def single(arguments: argparse.Namespace, cap: str) -> float:
    """Test accuracy of a search for one cap alone."""
    config = settings(arguments, f"single-{cap.rstrip('%')}", budget=arguments.single or arguments.total, max_macs=cap)
    reporter = make_reporter()
    result = run(config, progress=reporter)
    reporter.close()
    return float(result["found"]["test_accuracy"])


if __name__ == "__main__":
    main()
