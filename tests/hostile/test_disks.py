"""Disks that are full or read-only, and folders that someone else is writing."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pgnas.run_folder import RunFolder, storage

from .conftest import RUN, Attempt

LIMIT = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails then, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from pgnas.cli import main
sys.exit(main(sys.argv[2:]))
"""


def test_a_disk_that_fills_up_loses_nothing_and_the_run_goes_on_afterwards(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*RUN, "--out", str(out), "--max-macs", "60%", "--decide-at", "50%", "--until", "sample"]
    done = subprocess.run(
        [sys.executable, "-c", LIMIT, "16000", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("pgnas: error: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    assert "ulimit" in lines[0]
    assert not list(out.rglob(f"{storage.TEMPORARY_PREFIX}*"))
    done = subprocess.run(
        [sys.executable, "-m", "pgnas", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # of this process nothing changed


def test_two_runs_in_one_folder(
    attempt: Attempt, no_work: None, tmp_path: Path, make_config: Callable[..., object]
) -> None:
    config = make_config(model=RUN[2], out=str(tmp_path / "run"))
    with RunFolder.create_or_resume(config):  # type: ignore[arg-type]
        before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        for words in ([*RUN, "--out", str(tmp_path / "run")], ["search", str(tmp_path / "run")]):
            assert "one writer at a time" in attempt(words).complaint
        assert before == {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize("name", ["<b>", "a/b", "..", "con\u202efig", "é", "x" * 200])
def test_names_of_folders(
    attempt: Attempt, no_work: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = attempt([*RUN, "--out", name])
    assert outcome.code is None or outcome.complaint
