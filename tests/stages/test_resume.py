"""Killed with SIGKILL in any stage and started again with the same command, a run ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

RUN = [
    sys.executable, "-m", "pgnas", "run", "--model", "multibranch-resnet:width=6,stages=2", "--data", "digits",
    "--max-macs", "50%",
]  # fmt: skip
COMMAND = [*RUN, "--epochs", "24", "--candidates", "24", "--until", "train", "--out"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # the networks are tiny, and tests may run side by side
SAME = ("architecture.json", "found.safetensors", "posterior.safetensors", "candidates.jsonl", "metrics.jsonl")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run([*COMMAND, str(out)], check=True, capture_output=True, timeout=300, env=ONE_THREAD)
    return out


def has_begun(out, stage):
    try:
        rows = (out / "metrics.jsonl").read_text().splitlines()
        if stage == "sample":
            return (out / "candidates.jsonl").exists()
        return any(json.loads(row)["stage"] == stage for row in rows if row.endswith("}"))
    except (OSError, ValueError):
        return False


@pytest.mark.parametrize(("stage", "seed"), [("search", 1), ("sample", 2), ("train", 3)])
def test_a_killed_run_ends_as_the_uninterrupted_one(uninterrupted, tmp_path, stage, seed):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [*COMMAND, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ONE_THREAD
    )
    deadline = time.monotonic() + 200
    while not has_begun(out, stage):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0, 0.4))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "found.safetensors").exists()
    subprocess.run([*COMMAND, str(out)], check=True, capture_output=True, timeout=300, env=ONE_THREAD)
    for name in SAME:
        assert (out / name).read_bytes() == (uninterrupted / name).read_bytes(), name


def test_a_run_killed_while_exporting_ends_with_the_same_files(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    command = [*RUN, "--epochs", "2", "--candidates", "3", "--out"]
    subprocess.run([*command, str(whole)], check=True, capture_output=True, timeout=300, env=ONE_THREAD)
    process = subprocess.Popen(
        [*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ONE_THREAD
    )
    deadline = time.monotonic() + 200
    while not (out / "model.safetensors").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "result.json").exists()
    subprocess.run([*command, str(out)], check=True, capture_output=True, timeout=300, env=ONE_THREAD)
    for name in ("architecture.json", "found.safetensors", "model.py"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (whole, out))
    assert {**first, "seconds": None} == {**second, "seconds": None}
    assert (out / "report.html").exists()
    assert (out / "model.onnx").exists()
