"""Every example file runs, and says what it found."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from pgnas.supernets import MODELS

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(MODELS)
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        for name in set(MODELS) - before:
            del MODELS[name]
    assert capsys.readouterr().out
    assert not list(tmp_path.iterdir())
