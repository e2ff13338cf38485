"""CIFAR-10 at 16x16 under a cap of 40 % of the multiply-adds: the found network, seed by seed.

    PGNAS_DATA=folder python bench/cifar16.py --seeds 0 1 2 --baseline full uniform

The folder holds CIFAR-10 as cifar10.tar or unpacked as cifar10/{train,test}/<class>/<image>. Each seed is one
resumable run of about ten minutes on two cores; an interrupted bench goes on where it was. No fine-tuning: 20 epochs in
all, the supernet's included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tarfile
from pathlib import Path

from pgnas.config import RunConfig
from pgnas.console import make_reporter
from pgnas.stages import run


def find_cifar(work: Path) -> Path:
    """The unpacked image folder; unpacked into ``work`` if there is only the archive."""
    home = os.environ.get("PGNAS_DATA")
    if not home:
        sys.exit("bench cifar16: skipped, set PGNAS_DATA to a folder that holds cifar10.tar")
    if (Path(home) / "cifar10").is_dir():
        return Path(home) / "cifar10"
    unpacked = work / "cifar10"
    if not unpacked.is_dir():
        with tarfile.open(Path(home) / "cifar10.tar") as archive:
            archive.extractall(work / "unpacking", filter="data")
        (work / "unpacking" / "cifar10").rename(unpacked)
    return unpacked


def main() -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--granularity", default="channel")
    parser.add_argument("--baseline", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/cifar16"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    images = find_cifar(arguments.out)
    rows = []
    for seed in arguments.seeds:
        config = RunConfig(
            model="multibranch-resnet:width=32,blocks=1",
            data=str(images),
            out=str(arguments.out / f"{arguments.granularity}-{arguments.epochs}-seed{seed}"),
            image_size=16,
            epochs=arguments.epochs,
            max_macs="40%",
            granularity=arguments.granularity,
            baseline=tuple(arguments.baseline),
            seed=seed,
        )
        reporter = make_reporter()
        values = run(config, progress=reporter).values
        reporter.close()
        rows.append(values)
        (arguments.out / "results.json").write_text(json.dumps(rows, indent=2))
    print_table(rows)


def print_table(rows: list[dict]) -> None:
    """Accuracy of each seed, and the means."""
    print("| seed | found: test | MACs | hard samples before deciding | frozen after | supernet mean | baselines |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        baselines = ", ".join(f"{n} {b['test_accuracy']:.4f}" for n, b in row.get("baselines", {}).items())
        found, share = row["found"]["test_accuracy"], row["found"]["macs"] / row["full"]["macs"]
        print(
            f"| {row['seed']} | {found:.4f} | {share:.1%} | {row['candidates']['val_mean']:.4f} "
            f"| {row['decision']['val_frozen']:.4f} | {row['supernet']['val_accuracy']:.4f} | {baselines} |"
        )
    tests = [row["found"]["test_accuracy"] for row in rows]
    spread = statistics.stdev(tests) if len(tests) > 1 else float("nan")
    print(f"mean {statistics.mean(tests):.4f}, standard deviation {spread:.4f} over {len(tests)} seeds")


if __name__ == "__main__":
    main()
