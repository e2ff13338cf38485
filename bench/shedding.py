"""The same search with and without shedding, side by side: time, multiply-adds x examples, accuracy.

    PGNAS_DATA=folder python bench/shedding.py --seeds 0 1 2

The folder holds CIFAR-10 as cifar10.tar or unpacked as cifar10/{train,test}/<class>/<image>, read at 16x16; without it
the digits of scikit-learn stand in, which are too few to say much. A supernet is trained for all epochs under a cap of
40 % of the multiply-adds and the best candidate is taken at the end (``--decide-at never``). Seconds are those of the
search stage, in which alone the two differ, and of search, ranking and extraction together. Nothing is compiled unless
``--compile`` says so: torch.compile begins again at each shedding, which only longer runs repay. Each search is a
resumable run; give them the machine to themselves, and remove their folders to time them again. Where two cores are
free, the two of a pair can run beside each other, so that whatever slows one slows the other:

    taskset -c 0 python bench/shedding.py --only off & taskset -c 1 python bench/shedding.py --only on; wait
    python bench/shedding.py   # the table of what is there
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

from cifar16 import find_cifar

from pgnas.config import RunConfig
from pgnas.console import make_reporter
from pgnas.stages import run

STAGES = ("search", "sample", "extract")


def main() -> None:
    """Run both for every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--model", default="multibranch-resnet:width=32,blocks=1")
    parser.add_argument("--cap", default="40%")
    parser.add_argument("--compile", default="off", choices=("auto", "on", "off"))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/shedding"))
    parser.add_argument("--only", choices=("off", "on"), help="only the searches without or with shedding, no table")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    kinds = (arguments.only,) if arguments.only else ("off", "on")
    rows = [search(arguments, seed, shed) for seed in arguments.seeds for shed in kinds]
    if arguments.only:
        return
    (arguments.out / "results.json").write_text(json.dumps(rows, indent=2))
    print_table(rows)


def search(arguments: argparse.Namespace, seed: int, shed: str) -> dict:
    """One search; what it took and what it found."""
    has_cifar = bool(os.environ.get("PGNAS_DATA"))
    config = RunConfig(
        model=arguments.model,
        data=str(find_cifar(arguments.out)) if has_cifar else "digits",
        image_size=16 if has_cifar else None,
        out=str(arguments.out / f"{'cifar' if has_cifar else 'digits'}-{arguments.epochs}-{shed}-seed{seed}"),
        epochs=arguments.epochs,
        max_macs=arguments.cap,
        decide_at="never",
        shed=shed,
        compile=arguments.compile,
        seed=seed,
    )
    reporter = make_reporter()
    result = run(config, progress=reporter)
    reporter.close()
    stages = json.loads((result.path / "stages.json").read_text())
    facts = stages["search"]["facts"]
    return {
        "seed": seed,
        "shed": shed,
        "search_seconds": stages["search"]["seconds"],
        "seconds": sum(stages[name]["seconds"] for name in STAGES),
        "spent": facts["spent"],
        "sheddings": facts.get("sheddings", 0),
        "left": facts.get("left", 1.0),
        "val_best": result["candidates"]["val_best"],
        "val": result["found"]["val_accuracy"],
        "test": result["found"]["test_accuracy"],
        "macs": result["found"]["macs"] / result["full"]["macs"],
    }


def print_table(rows: list[dict]) -> None:
    """A row a search, and the ratios of each pair."""
    print("| seed | shed | search s | all s | epochs of the full network spent | left | found: MACs | val. | test |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['seed']} | {row['shed']} ({row['sheddings']}) | {row['search_seconds']:.0f} "
            f"| {row['seconds']:.0f} | {row['spent']:.2f} | {row['left']:.0%} "
            f"| {row['macs']:.1%} | {row['val']:.4f} | {row['test']:.4f} |"
        )
    for key, name in (("search_seconds", "search time"), ("seconds", "whole time"), ("spent", "multiply-adds")):
        ratios = [on[key] / off[key] for off, on in zip(rows[::2], rows[1::2], strict=True)]
        print(f"{name}: with shedding / without = {statistics.mean(ratios):.3f}")
    gains = [on["test"] - off["test"] for off, on in zip(rows[::2], rows[1::2], strict=True)]
    print(f"test accuracy: with shedding - without = {100 * statistics.mean(gains):+.2f} points")


if __name__ == "__main__":
    main()
