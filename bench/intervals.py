"""Do prediction intervals of the found network's accuracy hold, and how optimistic is the best validation score?

    python bench/intervals.py --searches 50

Small searches on handwritten digits, each with splits, weights and candidates of its own, an architecture drawn at the
end of training and not trained further: the network that is reported is the one that was chosen. Told before the test
split is read: the 95 % prediction interval for its accuracy there, from the half of validation that the selection never
saw (both samples' variance counted), and the same made naively from the score by which the network was chosen.

An interrupted bench goes on where it was; each search is a resumable run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from pgnas.bayes import prediction
from pgnas.config import RunConfig
from pgnas.console import SilentReporter
from pgnas.run_folder import RunFolder
from pgnas.stages import finishing, run
from pgnas.stages.context import Context
from pgnas.stages.pipeline import do_stage


def search(number: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One search with splits of its own: what was told before the test split was read, and what was there."""
    out = arguments.out / f"search{number:03d}"
    config = RunConfig(
        model=arguments.model,
        data="digits",
        out=str(out),
        epochs=arguments.epochs,
        batch_size=64,
        granularity="group",
        decide_at="never",
        candidates=arguments.candidates,
        compile="off",
        seed=number,
        data_seed=number,
    )
    run(config, until="train")
    with RunFolder.open(out) as folder:
        do_stage(Context(folder, SilentReporter()), "evaluate", finishing.evaluate)  # exporting would take longest
        result: Any = folder.read_json("result.json", stage="evaluate")
    found, choice = result["found"], result["choice"]
    right = round(choice["selected_accuracy"] * choice["selected_images"])
    return {
        "search": number,
        "best_validation": choice["selected_accuracy"],
        "untouched": found["val_accuracy"],
        "test": found["test_accuracy"],
        "interval": found["predicted_test_interval"],
        "naive": list(prediction(right, choice["selected_images"], found["test_images"])),
        "images": [choice["selected_images"], found["val_images"], found["test_images"]],
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Coverage and optimism over the searches."""
    count = len(rows)
    print(f"{count} searches; images: select, untouched, test = {rows[0]['images']}")
    print("| estimate | mean | mean - test | standard error | 95 % intervals that hold | mean width |")
    print("|---|---|---|---|---|---|")
    names = {"untouched": ("untouched half", "interval"), "best_validation": ("best validation score", "naive")}
    for key, (title, interval) in names.items():
        ahead = [row[key] - row["test"] for row in rows]
        error = statistics.stdev(ahead) / count**0.5 if count > 1 else float("nan")
        holds = sum(row[interval][0] <= row["test"] <= row[interval][1] for row in rows)
        width = statistics.mean(row[interval][1] - row[interval][0] for row in rows)
        mean = statistics.mean(row[key] for row in rows)
        print(
            f"| {title} | {mean:.4f} | {statistics.mean(ahead):+.4f} | {error:.4f} | {holds} of {count} | {width:.4f} |"
        )
    print(f"test accuracy: mean {statistics.mean(row['test'] for row in rows):.4f}")


def main() -> None:
    """Run the searches and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--model", default="multibranch-resnet:width=6,stages=2,blocks=1")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/intervals"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(arguments.searches):
        rows.append(search(number, arguments))
        print(json.dumps(rows[-1]), flush=True)
        (arguments.out / "results.json").write_text(json.dumps(rows, indent=2))
    print_table(rows)


if __name__ == "__main__":
    main()
