"""How far a run has come, asked from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pgnas import stages
from pgnas.cli import main
from pgnas.config import RunConfig
from pgnas.errors import RunFolderError, StorageError
from pgnas.progress import SilentReporter
from pgnas.run_folder import RunFolder, is_locked, storage
from pgnas.stages.noting import FolderProgress
from pgnas.stages.status import status

SMALL = "multibranch-resnet:width=4,stages=2"


def config(out):
    return RunConfig(model=SMALL, data="digits", out=str(out), epochs=2, candidates=4, max_macs="50%")


def told(folder):
    return json.loads(folder.file("progress.json").read_text())


def test_notes_are_few_and_the_last_is_always_there(folder):
    now = [0.0]
    progress = FolderProgress(SilentReporter(), folder, now=lambda: now[0])
    progress.stage("search")
    assert (told(folder)["stage"], told(folder)["total"]) == ("search", None)
    written = set()
    for done in range(1, 101):
        now[0] += 0.5
        progress.advance(done, 100, loss=float(done))
        written.add(told(folder)["done"])
    assert len(written) == 26  # one for every two seconds, and the beginning
    last = told(folder)
    assert (last["done"], last["total"], last["fields"], last["process"]) == (100, 100, {"loss": 100.0}, os.getpid())


def test_a_pace_gives_the_time_left(folder):
    now = [0.0]
    progress = FolderProgress(SilentReporter(), folder, now=lambda: now[0])
    progress.stage("search")
    progress.advance(1, 100)
    now[0] = 10.0
    progress.advance(20, 100)
    assert told(folder)["seconds_left"] == pytest.approx(40.0)


def test_a_full_disk_does_not_stop_a_stage_for_its_notes(folder, monkeypatch):
    def refuse(*_):
        raise StorageError("progress.json", "needs more room than the disk has left")

    monkeypatch.setattr(storage, "write_bytes", refuse)
    FolderProgress(SilentReporter(), folder).stage("search")


def test_a_lock_is_seen_from_outside_and_not_disturbed(tmp_path):
    assert not is_locked(tmp_path)
    with RunFolder.create_or_resume(config(tmp_path / "run")) as folder:
        assert is_locked(folder.path)
        with pytest.raises(RunFolderError, match="one writer"):
            RunFolder.open(folder.path)
    assert not is_locked(tmp_path / "run")


def test_a_run_from_its_beginning_to_its_end(tmp_path, capsys):
    out = tmp_path / "run"
    with RunFolder.create_or_resume(config(out)):
        begun = status(out)
        assert (begun.state, begun.done, begun.stage, begun.position) == ("running", (), None, None)
    stages.run(config(out), until="sample")
    left = status(out)
    assert (left.state, left.done, left.stage) == ("partial", ("search", "sample"), None)
    assert 0 < left.measured["cost"] <= 1
    assert left.measured["lambda"] >= 0
    assert left.measured["epoch"] == 1
    with RunFolder.open(out) as folder:
        progress = FolderProgress(SilentReporter(), folder)
        progress.stage("extract")
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        capsys.readouterr()
        assert main(["status", str(out)]) == 0
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == [f"{out}: running", "done: search, sample"]
    assert shown[2].startswith("now: extract, told 0:0")
    assert "λ" in shown[3]
    assert "epoch 1" in shown[3]
    assert len(shown) == 4
    stopped = status(out)
    assert (stopped.state, stopped.stage) == ("interrupted", "extract")
    assert stopped.resume is not None
    assert stopped.resume.startswith(f"pgnas run --model {SMALL} --data digits --out {out} ")
    with RunFolder.open(out) as folder:
        for name in stages.STAGES:
            folder.mark_done(name, 0.0)
        folder.append_metrics({"stage": "train", "epoch": 7, "accuracy": 0.25})
    ended = status(out)
    assert ended.measured == {"epoch": 7.0, "accuracy": 0.25}
    assert (ended.state, ended.done, ended.stage, ended.resume) == ("finished", tuple(stages.STAGES), None, None)


def test_no_run_is_one_line(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"pgnas: error: {tmp_path} must be a run folder")


def test_ctrl_c_in_a_terminal_saves_and_says_how_to_resume(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "pgnas", "run", "--model", SMALL, "--data", "digits", "--epochs", "500"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    try:
        while not list(out.glob("checkpoints/search-*.pt")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert told.splitlines()[-1] == (
        f"pgnas: interrupted; to resume: pgnas run --model {SMALL} --data digits --epochs 500 --out {out}"
    )
    stopped = status(out)
    assert (stopped.state, stopped.stage) == ("interrupted", "search")
    newest = max(out.glob("checkpoints/search-*.pt"), key=lambda path: path.stat().st_mtime)
    assert time.time() - newest.stat().st_mtime < 30
