"""The whole path, small: what lies in the folder, what is skipped, resumed and refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import pgnas
from pgnas import stages
from pgnas.architecture import Architecture
from pgnas.config import RunConfig
from pgnas.errors import ConfigError, DivergedError, FileError, ModelError, RunFolderError
from pgnas.progress import SilentReporter
from pgnas.stages.status import status

SMALL = "multibranch-resnet:width=6,stages=2"
FILES = {
    "config.toml", "env.json", "stages.json", "metrics.jsonl", "posterior.safetensors", "candidates.jsonl",
    "architecture.json", "supernet.json", "found.safetensors", "result.json", "report.html",
    "model.pt2", "model.onnx", "model.safetensors", "model.py", "network.json",
}  # fmt: skip


def config(out, **settings):
    chosen = {"model": SMALL, "data": "digits", "epochs": 4, "candidates": 5, "max_macs": "50%", **settings}
    return RunConfig(out=str(out), **chosen)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return stages.run(config(out, baseline=("full", "uniform")))


def test_what_the_ranking_goes_by_decides_who_is_chosen(tmp_path):
    chosen = {}
    for by in ("accuracy", "loss"):
        stages.run(config(tmp_path / by, candidates=12, epochs=1, decide_at="never", rank_by=by), until="sample")
        rows = [json.loads(line) for line in (tmp_path / by / "candidates.jsonl").read_text().splitlines()]
        keys = {"accuracy": lambda r: (-r["accuracy"], r["loss"]), "loss": lambda r: (r["loss"], -r["accuracy"])}
        first = min(rows, key=keys[by])
        chosen[by] = json.loads((tmp_path / by / "architecture.json").read_text())["digest"]
        assert chosen[by] == first["digest"]
    assert chosen["accuracy"] != chosen["loss"]


def test_a_run_leaves_everything_in_its_folder(finished):
    assert {p.name for p in finished.path.iterdir()} >= FILES
    values = json.loads((finished.path / "result.json").read_text())
    assert values["full"]["macs"] > 2 * values["found"]["macs"] > 0
    assert values["found"]["macs"] <= values["cap"]["macs"] == values["full"]["macs"] // 2
    assert values["candidates"]["count"] == 5
    assert values["candidates"]["val_best"] >= values["candidates"]["val_mean"]
    assert set(values["seconds"]) == {"search", "sample", "extract", "train", "export"}
    assert all(values["seconds"][stage] > 0 for stage in values["seconds"])
    page = (finished.path / "report.html").read_text()
    times = page[page.index("Time a stage.") : page.index("in all")]
    assert [stage in times for stage in [*values["seconds"], "evaluate"]] == [True] * 6
    for network in ("supernet", "found"):
        for split in ("val_accuracy", "test_accuracy"):
            assert 0 <= values[network][split] <= 1
    assert values["seed"] == 0


def test_the_result_agrees_with_the_network_on_disk(finished):
    module = finished.model
    counts = pgnas.measure(module, (torch.zeros(1, 1, 8, 8),))
    assert (counts.params, counts.macs) == (finished["found"]["params"], finished["found"]["macs"])
    again = pgnas.load(finished.path)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(module(x), again(x))
    data = pgnas.load_data("digits")
    with torch.no_grad():
        predicted = again(data.preprocessing.normalise(data.test.images)).argmax(1)
    accuracy = float((predicted == data.test.labels).double().mean())
    assert accuracy == pytest.approx(finished["found"]["test_accuracy"])


def test_a_network_is_loaded_from_the_run_or_from_its_one_file_and_not_before_it_is_exported(finished, tmp_path):
    x = torch.randn(3, 1, 8, 8)
    (tmp_path / "mine.safetensors").write_bytes((finished.path / "model.safetensors").read_bytes())
    with torch.no_grad():
        assert torch.equal(pgnas.load(str(tmp_path / "mine.safetensors"))(x), pgnas.load(finished.path)(x))
    (tmp_path / "config.toml").write_bytes((finished.path / "config.toml").read_bytes())
    with pytest.raises(RunFolderError, match="run pgnas export"):
        pgnas.load(tmp_path)


def test_baselines_are_trained_at_the_same_total_compute(finished):
    full, uniform = finished["baselines"]["full"], finished["baselines"]["uniform"]
    assert full["macs"] == finished["full"]["macs"]
    assert uniform["macs"] <= finished["cap"]["macs"]
    assert uniform["model"].startswith("multibranch-resnet:width=")
    spent = 1 * finished["full"]["macs"] + 3 * finished["found"]["macs"]
    for baseline in (full, uniform):
        assert baseline["epochs"] * baseline["macs"] == pytest.approx(spent, rel=0.35)  # whole epochs, and ranking
        assert 0 <= baseline["test_accuracy"] <= 1


def test_a_rerun_does_nothing_again(finished):
    written = ("posterior.safetensors", "found.safetensors", "model.onnx", "model.pt2", "result.json", "report.html")
    before = {name: (finished.path / name).stat().st_mtime_ns for name in written}
    again = stages.run(config(finished.path, baseline=("full", "uniform")))
    assert again.values == finished.values
    assert before == {name: (finished.path / name).stat().st_mtime_ns for name in written}


def test_stage_by_stage_is_the_same_as_all_at_once(finished, tmp_path):
    out = tmp_path / "steps"
    stages.run(config(out, baseline=("full", "uniform")), until="search")
    assert not (out / "architecture.json").exists()
    with pytest.raises(RunFolderError, match="pgnas sample"):
        stages.run_stage(out, "extract")
    for name in ("sample", "extract", "train"):
        stages.run_stage(out, name)
    for name in ("architecture.json", "found.safetensors", "posterior.safetensors"):
        assert (out / name).read_bytes() == (finished.path / name).read_bytes(), name


def test_the_same_seed_gives_the_same_run_and_another_seed_another(finished, tmp_path):
    same = stages.run(config(tmp_path / "a", baseline=("full", "uniform")), until="train")
    other = stages.run(config(tmp_path / "b", seed=1), until="train")
    read = lambda path: load_file(path / "found.safetensors")  # noqa: E731
    for name, value in read(finished.path).items():
        assert torch.equal(value, read(same.path)[name]), name
    assert (other.path / "architecture.json").read_bytes() != (same.path / "architecture.json").read_bytes()


def test_never_deciding_trains_the_supernet_to_the_end(tmp_path):
    result = stages.run(config(tmp_path / "never", max_macs=None, decide_at="never", epochs=2), until="train")
    rows = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["epoch"]) for row in rows] == [("search", 1), ("search", 2)]
    assert (result.path / "found.safetensors").exists()


def test_candidates_on_disk_belong_to_the_supernet_and_contain_the_winner(finished):
    rows = [json.loads(line) for line in (finished.path / "candidates.jsonl").read_text().splitlines()]
    winner = Architecture.from_json(json.loads((finished.path / "architecture.json").read_text()))
    best = max(rows, key=lambda row: (row["accuracy"], -row["loss"]))
    assert best["digest"] == winner.digest
    assert sum(row["is_mode"] for row in rows) == 1
    assert all(row["macs"] <= finished["cap"]["macs"] for row in rows)


def test_a_network_and_data_can_be_handed_in_and_are_not_changed(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    data = pgnas.load_data("digits", augment="off")
    result = pgnas.run(model=network, data=data, out=tmp_path / "own", epochs=2, candidates=3, max_params="60%")
    assert network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert result["found"]["params"] <= 0.6 * result["full"]["params"]
    with torch.no_grad():
        assert result.model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(RunFolderError, match="another"):
        pgnas.run(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data=data, out=tmp_path / "own", epochs=2)


def test_starting_weights_are_loaded_by_name(tmp_path, finished):
    weights = tmp_path / "weights.safetensors"
    from safetensors.torch import save_file

    from pgnas.supernets import build_model

    built = build_model(SMALL, in_channels=1, num_classes=10, image_size=(8, 8), seed=123)
    save_file(built.module.state_dict(), weights)
    result = stages.run(config(tmp_path / "w", weights=str(weights), epochs=1, lr=1e-9), until="search")
    start = built.module.state_dict()["blocks.0.paths.0.conv1.weight"]
    posterior = load_file(result.path / "posterior.safetensors")
    torch.testing.assert_close(posterior["body.blocks.0.paths.0.conv1.weight"], start)
    save_file({"strange": torch.zeros(2)}, weights)
    with pytest.raises(FileError, match="strange"):
        stages.run(config(tmp_path / "w2", weights=str(weights)), until="search")
    assert not (tmp_path / "w2").exists()


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"model": "resnet"}, ModelError, "registered name"),
        ({"model": "multibranch-resnet:depth=3"}, ModelError, "takes the parameters"),
        ({"model": "multibranch-resnet:width=many"}, ModelError, "int"),
        ({"model": "torchvision:resnet19"}, ModelError, "did you mean"),
        ({"model": "no_such_package.nets:build"}, ModelError, "importable"),
        ({"data": "digit"}, Exception, "digits"),
        ({"max_macs": "900G"}, ConfigError, "network's"),
        ({"weights": "nowhere.safetensors"}, FileError, "nowhere"),
    ],
)
def test_what_can_be_refused_is_refused_before_any_work_and_leaves_no_folder(tmp_path, settings, error, words):
    out = tmp_path / "refused"
    with pytest.raises(error, match=words):
        stages.run(config(out, **settings))
    assert not out.exists()


def test_a_diverging_run_stops_and_keeps_its_checkpoint(tmp_path):
    out = tmp_path / "diverged"
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))  # no BatchNorm to save it
    with pytest.raises(DivergedError, match="lower --lr"):
        pgnas.run(model=network, data="digits", out=out, lr=900.0, epochs=40, max_macs="50%", decide_at="90%")
    assert (out / "config.toml").exists()
    assert not (out / "posterior.safetensors").exists()


@pytest.mark.parametrize("name", ["image_size", "data_seed", "augment", "cutout"])
def test_settings_of_reading_are_refused_with_data_that_are_read(name, tmp_path):
    value = {"augment": "off"}.get(name, 4)
    flag = "--" + name.replace("_", "-")
    with pytest.raises(ConfigError, match=f"^{flag} must not be given with data that are read already"):
        pgnas.run(model=SMALL, data=pgnas.load_data("digits"), out=tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()


def test_a_network_file_that_was_taken_away_is_written_again(finished, tmp_path):
    own = shutil.copytree(finished.path, tmp_path / "own")
    wanted = (own / "model.safetensors").read_bytes()
    (own / "model.safetensors").unlink()
    with pytest.raises(RunFolderError, match="run pgnas export"):
        pgnas.load(own)
    stages.run_stage(own, "export")
    assert (own / "model.safetensors").read_bytes() == wanted


def test_a_run_whose_baselines_were_trained_last_is_not_interrupted(tmp_path):
    out = tmp_path / "run"
    stages.run(config(out, epochs=1, baseline=("full",)), until="evaluate", progress=SilentReporter())
    assert status(out).state == "partial"


@pytest.mark.parametrize("accumulate", [16, 12])  # parts of one image, and of one and two
def test_parts_of_one_image_are_refused_where_batch_norm_needs_more(accumulate, tmp_path):
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10)
    )
    with pytest.raises(ConfigError, match=r"^--accumulate must leave more than one image"):
        pgnas.run(model=network, data="digits", out=tmp_path / "out", batch_size=16, accumulate=accumulate)
    assert not (tmp_path / "out").exists()


def test_parts_of_one_image_are_fine_where_nothing_needs_more(tmp_path):
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    settings = {"batch_size": 32, "accumulate": 32, "epochs": 1, "candidates": 2}
    assert pgnas.run(model=network, data="digits", out=tmp_path / "out", **settings).path.exists()
