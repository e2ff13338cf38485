"""The paper's eight presets, shrunk, from end to end: to a found, extracted and exported network each.

    PGNAS_DATA=folder python bench/presets.py --scale 3%

The folder holds CIFAR-10 unpacked as cifar10/{train,test}/<class>/<image>, and ModelNet10 as modelnet10_voxels32.npz.
CIFAR-10 stands in for CIFAR-100 and ImageNet too (without it, the handwritten digits do), voxels for clips: what is
shown is that every preset runs, not what it achieves. Each preset is one resumable run; an interrupted bench goes on
where it was.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from pgnas.config_file import make_config
from pgnas.console import make_reporter
from pgnas.presets import PRESETS, parse_scale, scaled
from pgnas.stages import run

EXPORTED = ("model.safetensors", "model.pt2", "model.onnx", "model.py")


def stand_in(name: str) -> str | None:
    """The data that stand in for a preset's own; None if they are not there."""
    home = Path(os.environ.get("PGNAS_DATA", "-"))
    if "video" in name:
        voxels = home / "modelnet10_voxels32.npz"
        return str(voxels) if voxels.is_file() else None
    return str(home / "cifar10") if (home / "cifar10").is_dir() else "digits"


def main() -> None:
    """Run the presets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="3%")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--data", help="instead of what stands in by itself")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/presets"))
    arguments = parser.parse_args()
    rows = []
    for name in arguments.presets:
        data = arguments.data or stand_in(name)
        if data is None:
            print(f"{name}: left out, set PGNAS_DATA to a folder with modelnet10_voxels32.npz")
            continue
        out = arguments.out / name.replace("/", "-")
        layer = scaled(PRESETS[name].values(), parse_scale(arguments.scale))
        reporter = make_reporter()
        values = run(make_config(layer, {"data": data, "out": str(out)}), progress=reporter).values
        reporter.close()
        missing = [file for file in EXPORTED if not (out / file).is_file()]
        rows.append({"preset": name, "data": Path(data).stem, "missing": missing, **values})
        (arguments.out / "results.json").write_text(json.dumps(rows, indent=2))
    print_table(rows)


def print_table(rows: list[dict]) -> None:
    """One line a preset."""
    print("| preset | data | parameters: full | found | supernet test | found test | not exported | minutes |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        full, found = row["full"]["params"], row["found"]["params"]
        accuracies = f"{row['supernet']['test_accuracy']:.3f} | {row['found']['test_accuracy']:.3f}"
        minutes = sum(row["seconds"].values()) / 60
        missing = ", ".join(row["missing"]) or "none"
        print(f"| {row['preset']} | {row['data']} | {full:,} | {found:,} | {accuracies} | {missing} | {minutes:.1f} |")


if __name__ == "__main__":
    main()
