"""Disks that are full or read-only, and folders that someone else is writing."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgnas.run_folder import RunFolder, storage

from .conftest import RUN, Attempt


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writes beyond ``size`` bytes are refused, as on a full disk (Python ignores the signal that would end it)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 16_000])
def test_a_disk_that_fills_up_loses_nothing_and_the_run_goes_on_afterwards(
    attempt: Attempt, tmp_path: Path, size: int
) -> None:
    out = tmp_path / "run"
    words = [*RUN, "--out", str(out), "--max-macs", "60%", "--decide-at", "50%", "--until", "search"]
    with files_of_at_most(size):
        outcome = attempt(words)
    assert outcome.code == 1
    lines = [line for line in outcome.err.splitlines() if line.startswith("pgnas: error: ")]
    assert len(lines) == 1
    assert "ulimit" in lines[0]
    assert not list(out.rglob(f"{storage.TEMPORARY_PREFIX}*"))
    assert attempt(words).code == 0


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
