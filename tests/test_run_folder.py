from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pgnas.config import RunConfig
from pgnas.errors import RunFolderError
from pgnas.run_folder import RunFolder

Make = Callable[..., RunConfig]
Contents = Callable[[Path], dict[str, bytes]]


# Beginning and resuming


def test_a_new_folder_tells_what_runs_where(make_config: Make) -> None:
    config = make_config(epochs=3, max_macs="40%")
    with RunFolder.create_or_resume(config) as folder:
        assert folder.config == config
        environment = json.loads(folder.file("env.json").read_text())
        assert environment["torch"] == torch.__version__.partition("+")[0] or environment["torch"] == torch.__version__
        assert environment["threads"] == torch.get_num_threads()
        assert 'max_macs = "40%"' in folder.file("config.toml").read_text()


def test_the_same_settings_resume(make_config: Make) -> None:
    with RunFolder.create_or_resume(make_config()) as folder:
        folder.mark_done("search", 1.0)
    with RunFolder.create_or_resume(make_config()) as folder:
        assert folder.stage_done("search")


def test_other_settings_are_named_and_nothing_changes(make_config: Make, tmp_path: Path, contents: Contents) -> None:
    RunFolder.create_or_resume(make_config(epochs=20)).close()
    before = contents(tmp_path / "run")
    with pytest.raises(RunFolderError) as caught:
        RunFolder.create_or_resume(make_config(epochs=30, baseline=("full",), max_macs="40%"))
    message = str(caught.value)
    assert "epochs: 20 there, 30 now" in message
    assert "baseline: none there, full now" in message
    assert "max_macs: unset there, 40% now" in message
    assert contents(tmp_path / "run") == before


def test_a_moved_folder_is_still_the_run(make_config: Make, tmp_path: Path) -> None:
    RunFolder.create_or_resume(make_config()).close()
    (tmp_path / "run").rename(tmp_path / "moved")
    with RunFolder.create_or_resume(make_config(out=str(tmp_path / "moved"))) as folder:
        assert folder.config.out == str(tmp_path / "moved")


def test_a_folder_of_something_else_is_never_touched(make_config: Make, tmp_path: Path, contents: Contents) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"thesis\.tex"):
        RunFolder.create_or_resume(make_config())
    assert contents(tmp_path / "run") == {"thesis.tex": b"years of work"}


def test_an_empty_folder_or_a_killed_beginning_becomes_the_run(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".pgnas.lock").touch()
    (tmp_path / "run" / ".pgnas-tmp-12-config.toml").write_text("model = ")
    with RunFolder.create_or_resume(make_config()) as folder:
        assert not list(folder.path.glob(".pgnas-tmp-*"))


def test_what_cannot_be_a_run_folder(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in ("file", "file/below"):
        with pytest.raises(RunFolderError, match="can be made"):
            RunFolder.create_or_resume(make_config(out=str(tmp_path / out)))
    for path in ("absent", "file", "."):
        with pytest.raises(RunFolderError, match="run folder"):
            RunFolder.open(tmp_path / path)


@pytest.mark.parametrize("text", ["epoch = 3", "model = ", "model = 'm'", "epochs = 0", "\xff"])
def test_damaged_settings_are_refused(make_config: Make, tmp_path: Path, text: str) -> None:
    RunFolder.create_or_resume(make_config()).close()
    (tmp_path / "run" / "config.toml").write_bytes(text.encode("latin-1"))
    for begin in (lambda: RunFolder.create_or_resume(make_config()), lambda: RunFolder.open(tmp_path / "run")):
        with pytest.raises(RunFolderError, match="settings of a run"):
            begin()


def test_a_folder_from_before_stream_gates_has_none(make_config: Make) -> None:
    config = make_config()
    RunFolder.create_or_resume(config).close()
    file = Path(config.out) / "config.toml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith("streams")]
    file.write_text("\n".join(lines))
    with RunFolder.open(config.out) as folder:
        assert folder.config.streams == "off"


def test_another_machine_is_noted(make_config: Make, caplog: pytest.LogCaptureFixture) -> None:
    with RunFolder.create_or_resume(make_config()) as folder:
        environment = json.loads(folder.file("env.json").read_text())
        folder.write_json("env.json", environment | {"torch": "1.0"})
    RunFolder.create_or_resume(make_config()).close()
    assert "torch: 1.0 there" in caplog.text


# One writer


def test_two_writers_are_refused_and_a_reader_is_not(make_config: Make) -> None:
    with RunFolder.create_or_resume(make_config()) as folder:
        with pytest.raises(RunFolderError, match=f"process {os.getpid()}"):
            RunFolder.create_or_resume(make_config())
        reader = RunFolder.open(folder.path, writer=False)
        with pytest.raises(RunFolderError, match="reading only"):
            reader.append_metrics({})
    RunFolder.open(folder.path).close()


def test_a_forgotten_folder_frees_its_lock(make_config: Make) -> None:
    RunFolder.create_or_resume(make_config())
    RunFolder.create_or_resume(make_config()).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_writer_frees_the_folder_though_its_worker_lives(make_config: Make) -> None:
    config = make_config()
    code = (
        "import os, sys, time; from pathlib import Path; from pgnas.run_folder.lock import Lock\n"
        f"lock = Lock(Path({config.out!r}))\n"
        "worker = os.fork()\n"
        "if worker: print(worker, flush=True)\n"
        "time.sleep(60)"
    )
    Path(config.out).mkdir()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        worker = int(writer.stdout.readline())
        try:
            with pytest.raises(RunFolderError, match=f"process {writer.pid}"):
                RunFolder.create_or_resume(config)
            time.sleep(0.1)  # the worker has let go by now
            writer.kill()
            writer.wait()
            RunFolder.create_or_resume(config).close()
        finally:
            os.kill(worker, signal.SIGKILL)


# Stages


def test_seconds_add_up_over_sessions(make_config: Make) -> None:
    for _ in range(3):
        with RunFolder.create_or_resume(make_config()) as folder:
            folder.add_seconds("search", 2.0)
            assert not folder.stage_done("search")
    with RunFolder.create_or_resume(make_config()) as folder:
        folder.mark_done("search", 1.5, best=0.9)
    folder = RunFolder.open(folder.path, writer=False)
    assert folder.stage_done("search")
    assert folder.stage_seconds("search") == 7.5
    assert folder.stage_facts("search") == {"best": 0.9}


def test_forgetting_a_stage_forgets_what_followed(folder: RunFolder) -> None:
    for stage in ("search", "sample", "extract"):
        folder.mark_done(stage, 1.0)
    folder.forget_from("sample")
    folder.forget_from("never begun")
    assert [folder.stage_done(stage) for stage in ("search", "sample", "extract")] == [True, False, False]
    assert folder.stage_seconds("sample") == 0.0


@pytest.mark.parametrize("text", ["", "[]", '{"search": 3}', "\xff"])
def test_a_damaged_ledger_is_refused(make_config: Make, text: str) -> None:
    with RunFolder.create_or_resume(make_config()) as folder:
        folder.write_bytes("stages.json", text.encode("latin-1"))
    with pytest.raises(RunFolderError, match=r"stages\.json"):
        RunFolder.create_or_resume(make_config())
