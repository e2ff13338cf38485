"""Finals: the best candidates trained for a short while each, half of them for longer; killed and resumed, counted."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pgnas import stages
from pgnas.architecture import Architecture
from pgnas.config import RunConfig
from pgnas.errors import ConfigError
from pgnas.progress import SilentReporter
from pgnas.run_folder import RunFolder
from pgnas.stages import finalists
from pgnas.stages.finalists import FINALISTS_NAME, price, rounds
from pgnas.stages.status import status

from .forked import on_processes

SETTINGS = {
    "model": "multibranch-resnet:width=4,stages=1,blocks=1", "data": "digits", "epochs": 4, "candidates": 6,
    "finalists": 4, "max_macs": "60%", "batch_size": 128, "rank_by": "loss", "decide_at": "50%",
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("finals") / "run"
    stages.run(RunConfig(**SETTINGS, out=str(out)), until="train")
    return out


def rows_of(out, name=FINALISTS_NAME):
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


@pytest.mark.parametrize(("count", "epochs"), [(1, 1), (2, 1), (5, 3), (16, 1), (64, 2)])
def test_rounds_halve_the_candidates_and_double_what_each_is_given(count, epochs):
    found = list(rounds(count, epochs))
    assert len(found) == (count - 1).bit_length()
    assert [part.count for part in found] == [-(-count // 2**k) for k in range(len(found))]
    assert [part.epochs for part in found] == [epochs * 2**k for k in range(len(found))]
    assert [part.stop for part in found] == list(itertools.accumulate(part.epochs for part in found))


def test_the_best_ranked_begin_and_the_best_trained_one_is_chosen(whole):
    ranked = sorted(rows_of(whole, "candidates.jsonl"), key=lambda row: row["loss"])
    rows = rows_of(whole)
    first, last = [[row for row in rows if row["epochs"] == epochs] for epochs in (1, 3)]
    assert [row["name"] for row in first] == [row["digest"] for row in ranked[:4]]
    assert {row["name"] for row in last} == {row["name"] for row in sorted(first, key=lambda row: row["loss"])[:2]}
    winner, second = sorted(last, key=lambda row: row["loss"])
    chosen = Architecture.from_json(json.loads((whole / "architecture.json").read_text()))
    assert chosen.digest == winner["name"]
    with RunFolder.open(whole, writer=False) as folder:
        facts = folder.stage_facts("sample")
    assert facts["runner_up"] == second["name"]
    by_digest = {row["digest"]: row for row in ranked}
    assert facts["val_best"] == by_digest[winner["name"]]["accuracy"]  # as it was ranked, without training


def test_training_helps_and_is_counted(whole):
    rows, ranked = rows_of(whole), {row["digest"]: row for row in rows_of(whole, "candidates.jsonl")}
    first = [row for row in rows if row["epochs"] == 1]
    assert sum(row["loss"] < ranked[row["name"]]["loss"] for row in first) >= 3
    with RunFolder.open(whole, writer=False) as folder:
        spent = folder.stage_facts("sample")["finalists_spent"]
    assert 4 * 0.3 + 2 * 2 * 0.3 < spent <= 4 * 0.6 + 2 * 2 * 0.6  # of networks at 30 to 60 %


def test_the_winner_goes_on_with_the_weights_of_the_supernet(whole):
    small, supernet = load_file(whole / "extracted.safetensors"), load_file(whole / "posterior.safetensors")
    kept = small["classifier.weight"]
    columns = supernet["body.classifier.weight"]
    assert all(any(torch.equal(column, other) for other in columns.T) for column in kept.T)


def test_candidates_leave_no_rows_and_no_checkpoints(whole):
    assert {row["stage"] for row in rows_of(whole, "metrics.jsonl")} == {"search", "train"}
    assert not list((whole / "checkpoints").glob("finalist*"))


@pytest.mark.parametrize("after", [1, 5])
def test_killed_finals_end_as_whole_ones(whole, tmp_path, monkeypatch, after):
    out, train = tmp_path / "run", finalists._train
    calls = []

    def killed(*args):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(args)
        return train(*args)

    monkeypatch.setattr(finalists, "_train", killed)
    config = RunConfig(**SETTINGS, out=str(out))
    with pytest.raises(KeyboardInterrupt):
        stages.run(config, until="train")
    assert len(rows_of(out)) == after
    rows = (out / FINALISTS_NAME).read_text()
    (out / FINALISTS_NAME).write_text('{"name": []}\n' + rows)  # of another shape: passed over
    monkeypatch.setattr(finalists, "_train", lambda *args: calls.append(args) or train(*args))
    stages.run(config, until="train")
    assert len(calls) == 6  # nothing is trained twice
    assert rows_of(out)[1:] == rows_of(whole)
    for name in ("architecture.json", "extracted.safetensors", "found.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_progress_counts_the_steps_of_all_candidates(tmp_path):
    class Watcher(SilentReporter):
        finals, seen = False, []

        def note(self, text):
            self.finals = self.finals or text.startswith("finals")

        def advance(self, done, total, **fields):
            if self.finals:
                self.seen.append((done, total))

    watcher = Watcher()
    stages.run(RunConfig(**SETTINGS, out=str(tmp_path / "run")), until="sample", progress=watcher)
    assert status(tmp_path / "run").state == "partial"
    done, totals = zip(*watcher.seen, strict=True)
    assert list(done) == sorted(set(done))
    assert set(totals) == {done[-1]}


def test_finals_are_part_of_a_budget(whole, tmp_path):
    settings = {key: value for key, value in SETTINGS.items() if key != "epochs"} | {"budget": "10", "shed": "off"}
    epochs = []
    for count in (0, 4):
        out = tmp_path / str(count)
        result = stages.run(RunConfig(**(settings | {"finalists": count}), out=str(out)), until="train")
        epochs.append(result["found"]["epochs"])
    assert epochs[1] < epochs[0]


def test_finals_leave_half_of_what_a_budget_has_left(tmp_path):
    settings = {key: value for key, value in SETTINGS.items() if key != "epochs"} | {"shed": "off"}
    for budget, count in (("4", 0), ("12", 2)):
        out = tmp_path / budget
        stages.run(RunConfig(**(settings | {"budget": budget}), out=str(out)), until="train")
        facts = {name: stage["facts"] for name, stage in json.loads((out / "stages.json").read_text()).items()}
        left = float(budget) - facts["search"]["spent"] - facts["sample"]["ranking_spent"]
        assert facts["sample"].get("finalists", 0) == count
        assert facts["sample"].get("finalists_spent", 0.0) <= 0.5 * left
        assert facts["train"]["epochs"] >= 1


@pytest.mark.parametrize(("costs", "expected"), [([0.3] * 4, 4.8), ([0.1, 0.5, 0.3, 0.2, 0.6], 17.8)])
def test_the_price_of_finals_is_that_of_the_dearest_winning(costs, expected):
    assert price(costs, 2) == pytest.approx(expected)
    assert price(costs[:1], 2) == 0


@pytest.mark.parametrize("count", [1, 7, -1])
def test_a_number_of_finalists_that_makes_no_finals_is_refused(count):
    with pytest.raises(ConfigError, match="--finalists"):
        RunConfig(**(SETTINGS | {"finalists": count}), out="out")


def test_a_finished_run_with_finals_has_a_runner_up_and_a_report(whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "run")
    result = stages.run(RunConfig(**SETTINGS, out=str(out)))
    assert result["choice"]["runner_up"]["digest"] == sorted(rows_of(out)[-2:], key=lambda row: row["loss"])[1]["name"]
    assert result["candidates"]["finalists"] == 4
    assert "The 4 best were told apart by training each for a short while." in (out / "report.html").read_text()


def test_two_processes_hold_the_finals_of_their_candidates_together(tmp_path):
    out = tmp_path / "run"
    config = RunConfig(**{**SETTINGS, "finalists": 2, "epochs": 2}, out=str(out))

    def work(processes):
        return stages.run(config, until="extract").values["candidates"]

    first, second = on_processes(tmp_path, work, seconds=120)
    assert first == second
    assert {row["epochs"] for row in rows_of(out)} == {1}
    assert len(rows_of(out)) == 2  # once each, by the first process
    assert not list((out / "checkpoints").glob("finalist*"))
