"""Killed with SIGKILL in any stage and started again with the same command, a run ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

RUN = [
    sys.executable, "-m", "pgnas", "run", "--model", "multibranch-resnet:width=6,stages=2", "--data", "digits",
    "--max-macs", "50%",
]  # fmt: skip
AMID_EPOCHS = ["--checkpoint-minutes", "0.001"]  # an epoch takes longer: most are made before its end
COMMAND = [*RUN, "--epochs", "24", "--candidates", "24", *AMID_EPOCHS, "--until", "train", "--out"]
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


def test_two_processes_search_as_one_run_and_one_goes_on_with_it(tmp_path):
    out, words = tmp_path / "run", [*RUN, "--epochs", "4", "--candidates", "5", "--batch-size", "256"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *words[1:]]
    done = subprocess.run(
        [*launch, "--until", "search", "--out", str(out)],
        capture_output=True, text=True, timeout=200, env=ONE_THREAD, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder:") == 1  # one speaks
    assert json.loads((out / "env.json").read_text())["processes"] == 2
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1
    ranked = {}
    for name, command in (("one", words), ("two", launch)):
        copied = shutil.copytree(out, tmp_path / name)
        subprocess.run(
            [*command, "--until", "sample", "--out", str(copied)],
            check=True, capture_output=True, timeout=200, env=ONE_THREAD,
        )  # fmt: skip
        ranked[name] = [(copied / file).read_bytes() for file in ("candidates.jsonl", "architecture.json")]
    assert ranked["one"] == ranked["two"]


def test_an_error_of_two_processes_is_one_line(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *RUN[1:]]
    for words in (["--batch-size", "33"], ["--lr", "-1"]):
        done = subprocess.run(
            [*launch, *words, "--out", str(tmp_path / "run")],
            capture_output=True, text=True, timeout=200, env=ONE_THREAD, check=False,
        )  # fmt: skip
        lines = [line for line in done.stderr.splitlines() if line.startswith("pgnas: error")]
        assert len(lines) == 1, done.stderr
        assert "exitcode  : 2" in done.stderr  # as the launcher says
        assert not (tmp_path / "run").exists()
