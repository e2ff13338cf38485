"""SIGKILL at random moments of a run, the same command again: does it end as the uninterrupted run, bit for bit?

    python bench/kill_resume.py                 # 20 runs, each killed once, at moments spread over the run
    python bench/kill_resume.py --kills 5       # 20 runs, each killed up to five times

The moments are drawn from the length of a run, one from each twentieth of it; a run that had ended is begun anew.
Prints a line a run, with the stage in which it was killed, and ends with exit code 1 if any run ended otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SAME = (
    "posterior.safetensors", "momentum.safetensors", "candidates.jsonl", "architecture.json", "extracted.safetensors",
    "found.safetensors", "metrics.jsonl", "model.safetensors", "model.onnx", "model.py", "network.json",
)  # fmt: skip
"""Files that must be the same to the byte; result.json must be but for the seconds."""


def main() -> int:
    """Run, kill, run again, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="multibranch-resnet:width=6,stages=2")
    parser.add_argument("--epochs", default="12")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=1, help="most kills a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-minutes", default="0.002", help="so short that most are made amid an epoch")
    a = parser.parse_args()
    command = [
        sys.executable, "-m", "pgnas", "run", "--model", a.model, "--data", "digits", "--max-macs", "50%",
        "--epochs", a.epochs, "--candidates", "16", "--checkpoint-minutes", a.checkpoint_minutes, "--out",
    ]  # fmt: skip
    rng = random.Random(a.seed)
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        begin, end = _timed([*command, str(whole)], whole)
        print(f"uninterrupted: {end:.1f} s, the run's folder from {begin:.1f} s on", flush=True)
        for number in range(a.runs):
            out = Path(place) / "killed"
            stages = []
            for kill in range(a.kills):
                share = (number + rng.random()) / a.runs if kill == 0 else rng.random()
                moment = begin + share * (end - begin)
                while not _killed([*command, str(out)], moment):
                    if kill > 0:
                        break
                    shutil.rmtree(out)  # it was faster than the one that was timed, and had ended: sooner
                    moment *= 0.8
                else:
                    stages.append(_stage(out))
            _run([*command, str(out)])
            others = _differences(whole, out)
            failed += bool(others)
            verdict = f"differs in {', '.join(others)}" if others else "the same"
            print(f"run {number + 1}: killed in {', '.join(stages)}; {verdict}", flush=True)
            shutil.rmtree(out)
    print(f"{a.runs - failed} of {a.runs} runs ended as the uninterrupted one")
    return 1 if failed else 0


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, env=os.environ)


def _timed(command: list[str], out: Path) -> tuple[float, float]:
    """Seconds until the run has recorded something, before which it has nothing to lose, and until its end."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    while not (out / "stages.json").exists():
        time.sleep(0.01)
    begin = time.monotonic() - start
    if process.wait() != 0:
        raise SystemExit("the uninterrupted run failed")
    return begin, time.monotonic() - start


def _killed(command: list[str], after: float) -> bool:
    """Start and kill after so many seconds; whether it had not ended by then."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def _stage(out: Path) -> str:
    """The stage after the last that is done, or the start."""
    try:
        done = json.loads((out / "stages.json").read_text())
    except OSError:
        return "the start"
    names = ("search", "sample", "extract", "train", "export", "evaluate", "report")
    return next((name for name in names if not done.get(name, {}).get("done")), "the end")


def _differences(whole: Path, out: Path) -> list[str]:
    others = [name for name in SAME if (whole / name).read_bytes() != (out / name).read_bytes()]
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (whole, out))
    return others + (["result.json"] if {**first, "seconds": 0} != {**second, "seconds": 0} else [])


if __name__ == "__main__":
    sys.exit(main())
