"""Reports of runs at any moment: finished, interrupted, still going."""

from __future__ import annotations

import json
import shlex

import pytest

from pgnas import stages
from pgnas.cli import main
from pgnas.config import RunConfig
from pgnas.errors import FileError, RunFolderError
from pgnas.run_folder import RunFolder
from pgnas.stages.redrawing import redraw, run_names
from pgnas.stages.reporting import command

SMALL = "multibranch-resnet:width=4,stages=2"


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A run that was left after its ranking."""
    out = tmp_path_factory.mktemp("runs") / "<b>begun"
    config = RunConfig(model=SMALL, data="digits", out=str(out), epochs=2, candidates=4, max_macs="50%")
    stages.run(config, until="extract")
    return out


def test_a_run_that_is_not_finished_is_drawn_as_far_as_it_has_come(sampled, contents):
    before = contents(sampled)
    with RunFolder.open(sampled):  # as a run that is still going holds it
        path = redraw(sampled)
    html = path.read_text()
    for part in ("Candidates drawn", "Drawing of the found network", "Mean keep probability", "pgnas run --model"):
        assert part in html
    after = contents(sampled)
    assert {name for name in after if after[name] != before.get(name)} - {".pgnas.lock"} == {"report.html"}


def test_candidates_of_other_runs_beside_it(sampled, tmp_path):
    path = redraw(sampled, against=[sampled], out=tmp_path / "beside.html")
    assert "&lt;b&gt;begun (4)" in path.read_text()
    assert "<b>" not in path.read_text()
    assert run_names(["a/run", "b/run", "c/other"]) == ["a/run", "b/run", "other"]


def test_a_run_that_has_only_begun_has_a_report(tmp_path):
    RunFolder.create_or_resume(RunConfig(model=SMALL, data="digits", out=str(tmp_path / "new"))).close()
    assert "has not found a network yet" in redraw(tmp_path / "new").read_text()


def test_no_run_and_damaged_files(sampled, tmp_path):
    with pytest.raises(RunFolderError, match="must be a run folder"):
        redraw(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_bytes((sampled / "config.toml").read_bytes())
    (tmp_path / "run" / "operations.json").write_text('{"operations": [')
    with pytest.raises(FileError, match="readable JSON"):
        redraw(tmp_path / "run")


@pytest.mark.parametrize(
    "value", [[], None, 3, "text", {"gates": 3}, {"gates": {"classifier": 3}}, {"stage": [], "at": "x"}]
)
def test_files_of_another_shape_give_a_page_or_one_line(sampled, tmp_path, value, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.toml", "architecture.json", "metrics.jsonl", "stages.json"):
        (run / name).write_bytes((sampled / name).read_bytes())
    for name in ("supernet.json", "operations.json", "reliability.json", "env.json", "progress.json"):
        (run / name).write_text(json.dumps(value))
    assert main(["report", str(run)]) == 0
    assert main(["status", str(run)]) == 0
    (run / "result.json").write_text(json.dumps(value))
    capsys.readouterr()
    expected = 0 if isinstance(value, dict) else 2
    assert main(["report", str(run)]) == main(["compare", str(run), str(run), "--out", str(run / "c.html")]) == expected
    assert capsys.readouterr().err.count("\n") == expected


def test_the_command_says_all_that_differs_from_the_defaults(sampled, monkeypatch):
    told = command(RunConfig(model="m", data="my data", out="o", gate_inputs=True, exclude=("a", "b*"), lr=0.05))
    assert told == (
        "pgnas run --model m --data 'my data' --out o --lr 0.05 --exclude 'a,b*' --gate-inputs --seed 0 --data-seed 0"
    )
    assert command(RunConfig(model="python:Net:0", data="digits", out="o")) is None
    asked = []
    monkeypatch.setattr(stages, "run", lambda config, **_: asked.append(config) or stages.RunResult(sampled, {}))
    with RunFolder.open(sampled, writer=False) as folder:
        assert main(shlex.split(command(folder.config))[1:]) == 0
        assert asked == [folder.config]


def test_the_command_line_draws_and_opens(sampled, tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert main(["report", str(sampled), "--open", "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    assert opened == [(tmp_path / "page.html").as_uri()]
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert json.loads((sampled / "operations.json").read_text())["operations"]
