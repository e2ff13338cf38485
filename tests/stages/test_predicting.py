"""Predictions of single images: those of the evaluation, from the folder alone, with errors that name the image."""

from __future__ import annotations

import copy
import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import pgnas
from pgnas.bayes import tempered
from pgnas.cli import main
from pgnas.config import RunConfig
from pgnas.errors import ConfigError, DataError, FileError, RunFolderError
from pgnas.run_folder import RunFolder
from pgnas.stages import context, run
from pgnas.stages.evaluating import evaluate
from pgnas.stages.finetuning import FinetuneSettings, finetune

SMALL = {"model": "multibranch-resnet:width=4,stages=1,blocks=1", "data": "digits", "batch_size": 64, "candidates": 3}


pytestmark = pytest.mark.usefixtures("weights_alone")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("predict") / "run"
    return run(RunConfig(out=str(out), **SMALL, epochs=3, granularity="group", decide_at="never")).path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The first test images as files, in the order of their names."""
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(pgnas.load_data("digits").test.images[:6]):
        Image.fromarray(image[0].numpy()).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def own(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_files_are_predicted_as_the_evaluation_predicted_them(finished, images):
    found = pgnas.predict(finished, [images])
    kept = load_file(finished / "predictions.safetensors")
    for name in ("found", "ensemble"):
        wanted = kept[f"test.{name}"][:6].exp().double()
        torch.testing.assert_close(found.sources[name].probabilities, wanted, rtol=1e-3, atol=1e-5)
    information = kept["test.ensemble.mutual_information"][:6].double()
    torch.testing.assert_close(found.sources["ensemble"].epistemic, information, rtol=1e-2, atol=1e-5)
    for predicted in found.sources.values():
        torch.testing.assert_close(predicted.aleatoric + predicted.epistemic, predicted.entropy)
    assert float(found.sources["found"].epistemic.abs().max()) < 1e-12


def test_the_networks_drawn_are_kept_and_then_need_neither_data_nor_model(own, images, monkeypatch):
    first = pgnas.predict(own, [images / "0.png"], samples=8)

    def gone(*_, **__):
        raise DataError("data", "must be there")

    monkeypatch.setattr(context, "load_data", gone)
    monkeypatch.setattr(context, "build_model", gone)
    again = pgnas.predict(own, [images / "0.png"], samples=8)
    assert again.to_json() == first.to_json()
    assert pgnas.predict(own, [images / "0.png"], samples=0).sources.keys() == {"found"}
    fewer = pgnas.predict(own, [images / "0.png"], samples=2)
    assert fewer.samples == 2
    with pytest.raises(DataError, match="must be there"):
        pgnas.predict(own, [images / "0.png"], samples=17)


def test_a_killed_making_is_taken_up_again(own, images):
    whole = pgnas.predict(own, [images], samples=6)
    members = sorted((own / "ensemble").glob("*.safetensors"))
    (own / "ensemble" / "members.json").unlink()
    members[0].unlink()
    left = {path.name: path.stat().st_mtime_ns for path in members[1:]}
    assert pgnas.predict(own, [images], samples=6).to_json() == whole.to_json()
    assert {name: (own / "ensemble" / name).stat().st_mtime_ns for name in left} == left
    (own / "ensemble" / "members.json").write_text('{"draws": ["../../elsewhere"]}')
    with pytest.raises(RunFolderError, match="must list the networks drawn"):
        pgnas.predict(own, [images])


def test_after_an_early_decision_the_average_is_of_the_posterior(tmp_path, images):
    out = tmp_path / "early"
    run(RunConfig(out=str(out), **SMALL, epochs=4, max_macs="70%"))
    found, kept = pgnas.predict(out, [images]), load_file(out / "predictions.safetensors")
    torch.testing.assert_close(
        found.sources["ensemble"].probabilities, kept["test.ensemble"][:6].exp().double(), rtol=1e-3, atol=1e-5
    )


def test_one_image_or_folder_is_named_as_several_are(finished, images):
    one = images / "0.png"
    for named, count in ((one, 1), (str(one), 1), (images, 6), ([one, one], 2)):
        assert len(pgnas.predict(finished, named, samples=0).files) == count
    for wrong in (torch.zeros(1, 8, 8), [3], [Image.new("L", (8, 8))]):
        with pytest.raises(DataError, match="images must be paths"):
            pgnas.predict(finished, wrong, samples=0)


def test_a_run_on_objects_predicts_when_they_are_handed_in_again(images, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 10),
    )  # fmt: skip
    before = copy.deepcopy(network.state_dict())
    result = pgnas.run(
        model=network, data="digits", out=tmp_path / "run", epochs=1, candidates=2, device="cpu", decide_at="never",
    )  # fmt: skip
    with pytest.raises(RunFolderError, match=r"hand it in again from Python: .*model="):
        pgnas.predict(result, images)
    found = pgnas.predict(result, images, samples=3, model=network)
    assert set(found.sources) == {"found", "ensemble"}
    assert evaluate(result.path, samples=2, model=network)["uncertainty"]["samples"] == 2
    assert finetune(result.path, FinetuneSettings(epochs=1), model=network)["finetuned"]["epochs"] == 1
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())


def test_the_command_writes_a_table_json_and_csv(finished, images, tmp_path, capsys):
    where = {"json": tmp_path / "out" / "p.json", "csv": tmp_path / "p.csv"}
    words = [word for kind, path in where.items() for word in (f"--{kind}", str(path))]
    assert main(["predict", str(finished), str(images / "1.png"), str(images), "--samples", "4", *words]) == 0
    shown = capsys.readouterr().out
    assert shown.count("average of 4") == 7
    rows = json.loads(where["json"].read_text())
    assert rows["classes"] == [str(digit) for digit in range(10)]
    assert len(rows["predictions"]) == 14
    lines = list(csv.DictReader(where["csv"].read_text().splitlines()))
    for row, line in zip(rows["predictions"], lines, strict=True):
        assert (line["file"], line["network"], line["class"]) == (row["file"], row["network"], row["class"])
        assert float(line["entropy"]) == row["entropy"]
        assert [float(line[f"p({name})"]) for name in rows["classes"]] == row["probabilities"]
        assert sum(row["probabilities"]) == pytest.approx(1)
        assert max(row["probabilities"]) == row["confidence"]


def test_calibrated_probabilities_are_those_of_the_fitted_temperature(finished, images):
    plain, found = (pgnas.predict(finished, [images], samples=4, calibrated=calibrated) for calibrated in (False, True))
    temperatures = json.loads((finished / "temperatures.json").read_text())
    for name, predicted in found.sources.items():
        wanted = tempered(plain.sources[name].probabilities.log(), temperatures[name]).exp()
        torch.testing.assert_close(predicted.probabilities, wanted)
        assert predicted.epistemic is None
    assert '"epistemic": null' in found.to_json()


def test_temperatures_that_are_not_there_or_of_another_network(own, finished, images):
    with RunFolder.open(own) as folder:
        folder.write_json("temperatures.json", {"found": -1.0, "ensemble": 1.0})
    with pytest.raises(FileError, match="a temperature of each"):
        pgnas.predict(own, [images], calibrated=True)
    before = pgnas.predict(finished, [images], samples=4, calibrated=True)
    for damage in (lambda: None, (own / "temperatures.json").unlink):
        damage()
        with pytest.raises(FileError, match=r"pgnas evaluate .* --samples 16 again"):
            pgnas.predict(own, [images], calibrated=True)
        assert main(["evaluate", str(own), "--samples", "16"]) == 0  # as the message says
        again = pgnas.predict(own, [images], samples=4, calibrated=True)
        torch.testing.assert_close(again.sources["found"].probabilities, before.sources["found"].probabilities)
    with RunFolder.open(own) as folder:
        folder.mark_done("finetune", 0.0)
    with pytest.raises(RunFolderError, match="before fine-tuning"):
        pgnas.predict(own, [images], calibrated=True)


def test_unusual_images_are_read(finished, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (9, 14, 4), dtype=np.uint8)).save(tmp_path / "räksmörgås.png")
    Image.fromarray(rng.integers(0, 65535, (8, 8), dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(rng.integers(0, 255, (1, 1), dtype=np.uint8)).save(tmp_path / "point.PNG")
    Image.fromarray(rng.integers(0, 255, (30, 20, 3), dtype=np.uint8)).quantize(8).save(tmp_path / "palette.gif")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    found = pgnas.predict(finished, [tmp_path], samples=0)
    assert len(found.files) == 4
    assert bool(torch.isfinite(found.sources["found"].probabilities).all())


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "truncated", "no images", "none named", "a pipe"])
def test_bad_images_are_one_line_and_exit_code_2(kind, finished, images, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    if kind == "text":
        bad.write_text("no image")
    if kind == "empty":
        bad.touch()
    if kind == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(bad)
        bad.write_bytes(bad.read_bytes()[:4000])
    if kind == "no images":
        bad.mkdir()
    if kind == "a pipe":
        import os

        os.mkfifo(bad)
    named = [] if kind == "none named" else [str(images), str(bad)]
    assert main(["predict", str(finished), *named, "--samples", "0"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pgnas: error: ")
    assert err.count("\n") == 1
    assert kind == "none named" or "bad.png" in err


def test_runs_that_cannot_predict_are_refused(tmp_path, finished, images):
    with pytest.raises(RunFolderError, match="must be a run folder"):
        pgnas.predict(tmp_path, [images])
    (tmp_path / "config.toml").write_bytes((finished / "config.toml").read_bytes())
    with pytest.raises(RunFolderError, match="pgnas export"):
        pgnas.predict(tmp_path, [images])
    with pytest.raises(ConfigError, match="--samples"):
        pgnas.predict(finished, [images], samples=-1)
