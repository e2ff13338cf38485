from __future__ import annotations

import pytest

from pgnas.cli import main
from pgnas.config import RunConfig
from pgnas.run_folder import RunFolder


@pytest.fixture
def runs(tmp_path):
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    for path, epochs in zip(paths, (2, 3), strict=True):
        with RunFolder.create_or_resume(RunConfig(model="m", data="d", out=str(path), epochs=epochs)) as folder:
            folder.write_json(
                "result.json", {"found": {"macs": 10, "test_accuracy": 0.5}, "full": {"macs": 40}, "seconds": {}}
            )
    return list(map(str, paths))


def test_runs_side_by_side_in_a_table_and_on_a_page(runs, tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    page = tmp_path / "page.html"
    with RunFolder.open(runs[0]):  # as while it runs
        assert main(["compare", *runs, "--out", str(page), "--open"]) == 0
    shown = capsys.readouterr().out.replace("\u00a0", " ").splitlines()
    assert shown[2].split() == [runs[0], "50.0", "%", "–", "10", "25.0", "%", "–", "–", "–"]
    assert ["epochs", "2", "3"] in [line.split() for line in shown]
    assert shown[-1] == f"page: {page}"
    assert "2 runs compared" in page.read_text()
    assert opened == [page.as_uri()]


@pytest.mark.parametrize(("extra", "message"), [([], "two run folders"), (["nowhere"], "must be a run folder")])
def test_what_cannot_be_compared(runs, extra, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", runs[0], *extra]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "compare.html").exists()
