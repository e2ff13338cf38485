"""Fine-tuning: the found network of a finished run trained further, in place or in a copy."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import pgnas
from pgnas.cli import main
from pgnas.config import RunConfig
from pgnas.errors import ConfigError, InputError, RunFolderError, StorageError
from pgnas.run_folder import RunFolder
from pgnas.stages import finishing, run
from pgnas.stages.evaluating import evaluate
from pgnas.stages.finetuning import FinetuneSettings, finetune
from pgnas.stages.phases import NetworkPhase
from pgnas.stages.status import status

SHORT = FinetuneSettings(epochs=2, lr=0.05, weight_decay=5e-4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    run(
        RunConfig(
            model="multibranch-resnet:width=4,stages=1,blocks=1", data="digits", out=str(out), epochs=1, candidates=2
        )
    )
    return out


@pytest.fixture
def own(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_the_network_is_trained_further_and_exported_again(own):
    before = json.loads((own / "result.json").read_text())
    result = finetune(own, FinetuneSettings(epochs=10, lr=0.05))
    after = json.loads((own / "result.json").read_text())
    assert {key: after[key] for key in before} == before
    assert after["finetuned"]["test_accuracy"] > before["found"]["test_accuracy"]
    assert after["finetuned"]["epochs"] == 10
    assert any("fine-tuned" in line for line in result.summary())
    found, tuned = load_file(own / "found.safetensors"), load_file(own / "finetuned.safetensors")
    assert found.keys() == tuned.keys()
    assert any(not torch.equal(found[name], tuned[name]) for name in found)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(pgnas.load(own)(x), result.model(x))
        torch.testing.assert_close(
            torch.export.load(own / "model.pt2").module()(x), result.model(x), rtol=1e-4, atol=1e-4
        )
    assert "fine-tuned" in (own / "report.html").read_text()
    again = evaluate(own, samples=2, ood=["digits"])  # of the found network as it was: that is what its results are of
    told = again["uncertainty"]
    assert told["networks"]["found"]["accuracy"]["value"] == pytest.approx(after["found"]["test_accuracy"])
    assert told["ood"]["digits"]["found"]["entropy"] == pytest.approx(0.5, abs=1e-3)  # ties broken by rounding


@pytest.fixture
def weights_alone(monkeypatch):
    """Export nothing but the weights, which is what these tests look at: the other formats take seconds."""
    monkeypatch.setattr(finishing, "FORMATS", {})


@pytest.mark.usefixtures("weights_alone")
def test_a_copy_leaves_the_run_alone_and_ends_alike(own, tmp_path):
    files = {path.name: path.read_bytes() for path in own.iterdir() if path.is_file()}
    assert main(["finetune", str(own), "--epochs", "2", "--lr", "0.05", "--out", str(tmp_path / "copy")]) == 0
    assert {path.name: path.read_bytes() for path in own.iterdir() if path.is_file()} == files
    finetune(own, SHORT)
    for name in ("finetuned.safetensors", "model.safetensors"):
        assert (own / name).read_bytes() == (tmp_path / "copy" / name).read_bytes()


@pytest.mark.usefixtures("weights_alone")
def test_killed_and_begun_again_it_ends_as_if_nothing_had_happened(own, tmp_path, monkeypatch):
    whole = shutil.copytree(own, tmp_path / "whole")
    finetune(whole, SHORT)
    prepared, calls = NetworkPhase.prepare_step, []

    def killed(self, step):
        calls.append(step)
        if len(calls) > 15:  # within the second epoch
            raise KeyboardInterrupt
        prepared(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(NetworkPhase, "prepare_step", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(own, SHORT)
    stopped = status(own)
    assert (stopped.state, stopped.stage) == ("interrupted", "finetune")
    assert stopped.resume == f"pgnas finetune {own} --epochs 2 --lr {SHORT.lr} --weight-decay {SHORT.weight_decay}"
    finetune(own, SHORT)
    assert status(own).state == "finished"
    assert (own / "finetuned.safetensors").read_bytes() == (whole / "finetuned.safetensors").read_bytes()
    finetune(own, SHORT)  # done: nothing happens
    with pytest.raises(RunFolderError, match=r"other settings, got epochs 2 there, 3 now; add --out"):
        finetune(own, FinetuneSettings(epochs=3, lr=0.05))


@pytest.mark.usefixtures("weights_alone")
def test_a_copy_of_a_fine_tuned_run_is_fine_tuned_as_if_that_had_not_been(own, tmp_path):
    other = FinetuneSettings(epochs=1, lr=0.02)
    finetune(own, other, out=tmp_path / "first")
    finetune(own, SHORT)
    with pytest.raises(RunFolderError, match="add --out with another folder"):
        finetune(own, other)
    result = finetune(own, other, out=tmp_path / "second")
    assert result["finetuned"]["epochs"] == 1
    one, two = (tmp_path / name / "finetuned.safetensors" for name in ("first", "second"))
    assert one.read_bytes() == two.read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if row["stage"] == "finetune"] == [1]


@pytest.mark.usefixtures("weights_alone")
def test_a_copy_that_a_kill_left_half_made_in_a_run_stands_in_nobodys_way(own):
    half = own / ".pgnas-tmp-tuned"
    (half / "exports").mkdir(parents=True)
    evaluate(own, samples=2)
    assert half.is_dir()  # it might be being made
    assert finetune(own, SHORT, out=own / "tuned")["finetuned"]["epochs"] == SHORT.epochs
    assert not half.exists()


@pytest.mark.usefixtures("weights_alone")
@pytest.mark.parametrize("name", ["found.safetensors", "architecture.json", "metrics.jsonl", "candidates.jsonl"])
def test_what_is_damaged_is_refused_before_anything_is_noted(own, tmp_path, name):
    whole = (own / name).read_bytes()
    (own / name).write_bytes(b"{]\n")
    before = {path.name: path.read_bytes() for path in own.iterdir() if path.is_file()}
    for out in (None, tmp_path / "copy"):
        with pytest.raises(InputError, match=name):
            finetune(own, SHORT, out=out)
    assert {path.name: path.read_bytes() for path in own.iterdir() if path.is_file()} == before
    assert not (tmp_path / "copy").exists()
    (own / name).write_bytes(whole)
    other = FinetuneSettings(epochs=1, lr=0.02)  # the refused ones were not noted
    assert finetune(own, other, out=tmp_path / "copy")["finetuned"]["epochs"] == 1


def test_an_unfinished_run_and_foreign_folders_are_refused(own, tmp_path):
    unfinished = RunConfig(model="multibranch-resnet:width=4", data="digits", out=str(tmp_path / "half"), epochs=1)
    run(unfinished, until="search")
    with pytest.raises(RunFolderError, match="must be a finished run"):
        finetune(tmp_path / "half", SHORT)
    with pytest.raises(RunFolderError, match="must be a finished run"):
        finetune(tmp_path / "half", SHORT, out=tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    with pytest.raises(RunFolderError, match="must be a run folder"):
        finetune(tmp_path, SHORT)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(RunFolderError, match="must be empty or a copy"):
        finetune(own, SHORT, out=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_run_done_stage_by_stage_is_fine_tuned(own):
    with RunFolder.open(own) as folder:  # as pgnas evaluate leaves it; pgnas report only draws
        folder.forget_from("report")
    assert main(["report", str(own)]) == 0
    assert finetune(own, SHORT)["finetuned"]["epochs"] == 2


def test_a_file_where_the_copy_shall_be_is_refused_and_nothing_is_copied(own, tmp_path):
    (tmp_path / "tuned").write_text("keep")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(RunFolderError, match="must be a folder, got a file"):
        finetune(own, SHORT, out=tmp_path / "tuned")
    with pytest.raises(StorageError):
        finetune(own, SHORT, out=tmp_path / "tuned" / "inside")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"weight_decay": -1.0}])
def test_wrong_settings_name_their_flag(settings):
    with pytest.raises(ConfigError, match="--" + next(iter(settings)).replace("_", "-")):
        FinetuneSettings(**settings)
