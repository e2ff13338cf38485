"""A front: one search, a network a cap, each a run folder; resumed, refused, told apart."""

from __future__ import annotations

import csv
import html
import json
import re
import shlex
import shutil
import tomllib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import pgnas
from pgnas import stages
from pgnas.architecture import Architecture
from pgnas.cli import main
from pgnas.config import RunConfig
from pgnas.errors import ConfigError, RunFolderError
from pgnas.progress import SilentReporter
from pgnas.report.front import front_figure, undominated
from pgnas.run_folder import RunFolder
from pgnas.stages import exporting, finishing
from pgnas.stages.context import Context
from pgnas.stages.front import front
from pgnas.stages.front_settings import FrontSettings
from pgnas.stages.reporting import commands
from pgnas.stages.schedule import cosine_schedule
from pgnas.stages.status import status
from pgnas.supernets import build_model

CAPS = FrontSettings(caps=("60%", "30%"), epochs=1)


@pytest.fixture(scope="module", autouse=True)
def source_alone():
    """Of the exported formats the one that is written fastest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finishing, "FORMATS", {exporting.SOURCE_NAME: exporting.export_source})
        yield


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    out = tmp_path_factory.mktemp("searched") / "run"
    config = RunConfig(
        model="multibranch-resnet:width=4,stages=1,blocks=1", data="digits", out=str(out), epochs=2, candidates=3,
        max_macs="70%", decide_at="never", batch_size=64, finalists=2,
    )  # fmt: skip
    stages.run(config, until="search")
    return out


@pytest.fixture(scope="module")
def made(searched):
    before = (searched / "posterior.safetensors").read_bytes()
    result = front(searched, CAPS)
    assert (searched / "posterior.safetensors").read_bytes() == before
    return result


def test_a_run_that_raced_its_candidates_has_a_front_that_scores_all_of_its_few(tmp_path):
    out = tmp_path / "run"
    config = RunConfig(
        model="multibranch-resnet:width=4,stages=1,blocks=1", data="digits", out=str(out), epochs=2, logit_lr=2.0,
        max_macs="80%", ranking="halving",
    )  # fmt: skip
    stages.run(config, until="search")
    result = front(out, FrontSettings(caps=("40%",), epochs=2, start="larger-search"))
    (point,) = result.points
    settings = tomllib.loads((out / point["folder"] / "config.toml").read_text())
    assert (settings["candidates"], settings.get("ranking", "exhaustive")) == (4, "exhaustive")
    assert point["macs"] > 0


def test_a_point_says_how_its_front_is_made_and_gone_on_with(made, searched, capsys):
    for point in made.points:
        folder = searched / point["folder"]
        with RunFolder.open(folder, writer=False) as opened:
            first, second = commands(opened)
        assert first.startswith("pgnas run ")
        assert f"--out {searched} " in f"{first} "
        assert second == f"pgnas front {searched} --caps 60%,30% --epochs 1 --cost macs --start larger"
        report = html.unescape((folder / "report.html").read_text())
        assert f"{first}\n{second}" in report
    assert main(shlex.split(second)[1:]) == 0
    assert "cap 60%" in capsys.readouterr().out


def test_the_command_of_an_interrupted_point_is_that_of_its_front(searched, made, tmp_path):
    point = shutil.copytree(searched / "front" / "macs-30pct", tmp_path / "point")
    values = json.loads((point / "stages.json").read_text())
    del values["train"]
    (point / "stages.json").write_text(json.dumps(values))
    assert status(point).resume.startswith(f"pgnas front {searched} --caps 60%,30%")


def test_every_point_meets_its_cap_and_is_a_run_of_its_own(made, searched):
    assert [point["cap"] for point in made.points] == ["30%", "60%"]
    full = json.loads((searched / "front" / "macs-30pct" / "result.json").read_text())["full"]["macs"]
    for point, share in zip(made.points, (0.3, 0.6), strict=True):
        assert point["macs"] <= share * full
        assert point["expected_cost"] == pytest.approx(share, abs=1e-3)
        assert 0 < point["latency"] < 10 * point["full_latency"]
        epochs = json.loads((searched / point["folder"] / "result.json").read_text())["found"]["epochs"]
        assert epochs == int(1 / share)  # what an epoch of the full network pays for
        assert epochs * point["macs"] / full < point["spent"] < epochs * point["macs"] / full + 0.5  # and the ranking
        folder = searched / point["folder"]
        network = pgnas.load(folder)
        assert sum(p.numel() for p in network.parameters()) == point["params"]
        assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
        assert {"model.safetensors", "model.py", "report.html"} <= {path.name for path in folder.iterdir()}


def test_the_files_of_a_front_say_the_same(made, searched):
    values = json.loads((searched / "front" / "front.json").read_text())
    assert values["points"] == [dict(point) for point in made.points]
    assert values["search"]["epochs"] == 2
    rows = list(csv.DictReader((searched / "front" / "front.csv").read_text().splitlines()))
    assert [float(row["val_accuracy"]) for row in rows] == [point["val_accuracy"] for point in made.points]
    picture = (searched / "front" / "front.svg").read_text()
    assert picture.rstrip().endswith("</svg>")
    assert re.findall(r">(\d+%)<", picture) == 3 * ["30%", "60%"]
    assert "latency, % of the full network&#39;s" in picture or "latency, % of the full network's" in picture


def test_what_the_data_are_is_told_once(made, searched, capsys):
    assert main(["front", str(searched), "--caps", "60%,30%", "--epochs", "1"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("data: ")]
    assert told == list(dict.fromkeys(told)) != []


def test_a_killed_front_ends_as_the_whole_one(made, searched, tmp_path):
    again = shutil.copytree(searched, tmp_path / "run")
    shutil.rmtree(again / "front" / "macs-60pct")
    (again / "front" / "front.json").unlink()
    kept = (again / "front" / "macs-30pct" / "model.py").stat().st_mtime_ns
    result = front(again, CAPS)
    assert (again / "front" / "macs-30pct" / "model.py").stat().st_mtime_ns == kept
    clock = {"latency": 0, "full_latency": 0}  # the point that was made anew was timed anew
    assert [{**point, **clock} for point in result.points] == [{**point, **clock} for point in made.points]
    assert result.points[0] == made.points[0]
    for name in ("architecture.json", "found.safetensors"):
        both = [(run / "front" / "macs-60pct" / name).read_bytes() for run in (again, searched)]
        assert both[0] == both[1]


def test_the_learning_rate_begins_as_asked_and_ends_at_nothing(made, searched):
    rows = [json.loads(line) for line in (searched / "front" / "macs-30pct" / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == 3 * ["train"]
    assert 0 < rows[-1]["lr"] < 0.1 * CAPS.first_lr("sgd") < rows[0]["lr"]
    settings = tomllib.loads((searched / "front" / "macs-30pct" / "config.toml").read_text())
    assert settings["finalists"] == 0  # what a point may cost is for itself
    steps = 1_000
    whole = cosine_schedule(settings["lr"], (2 + 3) * steps)
    assert whole.at(2 * steps) == pytest.approx(CAPS.first_lr("sgd"), rel=0.02)


def test_a_point_begins_with_what_the_next_larger_one_learned(made, searched):
    larger, smaller = (searched / "front" / name for name in ("macs-60pct", "macs-30pct"))
    architecture = Architecture.from_json(json.loads((larger / "architecture.json").read_text()))
    handed = supernet_of(smaller)
    trained = load_file(larger / "found.safetensors")
    parameters = dict(pgnas.extract(handed, architecture).named_parameters())
    assert parameters
    for name, value in parameters.items():
        assert torch.equal(value.detach(), trained[name])
    first = load_file(searched / "posterior.safetensors")
    assert all(torch.equal(value, first[name]) for name, value in weights_of(larger).items())
    assert not all(torch.equal(value, first[name]) for name, value in weights_of(smaller).items())


def weights_of(folder):
    return {n: t for n, t in load_file(folder / "posterior.safetensors").items() if n.startswith("body")}


def test_a_point_under_other_settings_is_another(made, searched):
    with pytest.raises(RunFolderError, match="another --start"):
        front(searched, FrontSettings(caps=("30%",), epochs=1, start="search"))
    with pytest.raises(RunFolderError, match="other settings"):
        front(searched, FrontSettings(caps=("30%",), epochs=2))
    with pytest.raises(RunFolderError, match="other settings"):  # and nothing new is made before that is said
        front(searched, FrontSettings(caps=("55%", "30%"), epochs=2))
    with pytest.raises(RunFolderError, match="another --start"):
        front(searched, FrontSettings(caps=("55%", "30%"), epochs=1, start="search"))
    assert not (searched / "front" / "macs-55pct").exists()


def test_a_cap_added_between_two_leaves_the_smaller_ones_what_they_had(searched, tmp_path):
    own = shutil.copytree(searched, tmp_path / "run", ignore=shutil.ignore_patterns("front"))
    front(own, FrontSettings(caps=("40%",), epochs=1))
    front(own, FrontSettings(caps=("60%", "40%", "15%"), epochs=1))

    def units(cap, chosen):
        with RunFolder.open(own / "front" / f"macs-{cap}pct", writer=False) as folder:
            point = Context(folder, SilentReporter())
            return chosen(point.posterior.gates, point.architecture)

    kept = {cap: units(cap, lambda gates, architecture: gates.mask(architecture) > 0) for cap in ("60", "40")}
    assert (kept["40"] & ~kept["60"]).any()  # drawn before there was the larger one
    begun = units("15", lambda gates, _: torch.sigmoid(gates.logits()) > 1e-6)
    assert torch.equal(begun, kept["40"])  # with all of the next larger network, whatever came between


def test_what_cannot_be_is_refused(searched, tmp_path, capsys):
    with pytest.raises(ConfigError, match="--caps"):
        front(searched, FrontSettings(caps=("400G",)))
    assert not (searched / "front" / "macs-400G").exists()
    for settings in (
        {},
        {"caps": ("20%",), "points": 2},
        {"points": 0},
        {"caps": ("x",)},
        {"points": 2, "epochs": -1},
        {"points": 1, "start": "x"},
        {"points": 1, "lr": 0.0},
    ):
        with pytest.raises(ConfigError, match=r"--caps|--points|--epochs|--start|--lr"):
            FrontSettings(**settings)
    assert main(["front", str(tmp_path), "--points", "2"]) == 2
    assert "must be a run folder" in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_may_end_at_the_rate_with_which_points_begin(optimizer):
    config = RunConfig(model="resnet8", data="digits", out="runs/x", optimizer=optimizer)
    joint = FrontSettings(caps=("60%",), start="joint").first_lr(optimizer)
    assert joint == config.peak_lr  # to the last bit: a floor may not be higher
    replace(config, lr_floor=joint)
    assert CAPS.first_lr(optimizer) == pytest.approx(0.3 * joint)


def test_points_are_spaced_evenly():
    assert FrontSettings(points=4).wanted == ("20%", "40%", "60%", "80%")
    assert FrontSettings(caps=("40%", "40%")).wanted == ("40%",)


def test_a_point_is_dominated_by_one_that_costs_no_more_and_is_no_worse():
    points = [
        {"macs": 1, "val_accuracy": 0.5}, {"macs": 2, "val_accuracy": 0.5}, {"macs": 3, "val_accuracy": 0.9},
        {"macs": 3, "val_accuracy": 0.9}, {"macs": 4, "val_accuracy": 0.8}, {"macs": 4, "val_accuracy": 0.95},
    ]  # fmt: skip
    assert undominated(points, "macs") == [True, False, True, True, False, True]


def test_the_legend_names_points_that_only_a_later_panel_shows_dominated():
    costs = [(1, 9, 0.5), (2, 8, 0.6)]  # by parameters the second costs less and is better
    shared = {"test_accuracy": 0.5, "cap": "50%"}
    points = [{"macs": macs, "params": params, "val_accuracy": val, **shared} for macs, params, val in costs]
    assert front_figure(points, "macs").count("dominated (validation)") == 1
    del points[0]
    assert "dominated (validation)" not in front_figure(points, "macs")


@pytest.fixture(scope="module")
def descended(tmp_path_factory):
    """A front whose posterior was searched on from point to point: its logits are fast enough for the few steps."""
    out = tmp_path_factory.mktemp("descended") / "run"
    config = RunConfig(
        model="multibranch-resnet:width=4,stages=1,blocks=1", data="digits", out=str(out), epochs=2, candidates=3,
        max_macs="80%", decide_at="never", batch_size=64, logit_lr=0.5,
    )  # fmt: skip
    stages.run(config, until="search")
    return out, front(out, FrontSettings(caps=("60%", "35%"), epochs=2))


def test_a_posterior_is_searched_on_down_to_each_cap(descended):
    out, made = descended
    full = json.loads((out / "front" / "macs-35pct" / "result.json").read_text())["full"]["macs"]
    kept = []
    for point, share in zip(made.points, (0.35, 0.6), strict=True):
        folder = out / point["folder"]
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        searched = [row for row in rows if row["stage"] == "search"]
        assert searched
        assert searched[-1]["target"] == pytest.approx(share, rel=1e-3)  # the cap as a whole number
        assert point["macs"] <= share * full
        assert point["spent"] <= 2 + 1  # no more than asked, but for the search's last epoch
        assert (folder / "start.safetensors").exists()
        kept.append(torch.sigmoid(supernet_of(folder).gates.logits()))
    smaller, larger = kept
    assert smaller.mean() < larger.mean()
    assert (smaller[larger < 0.05] < 0.05).all()  # what left stays away


def test_a_point_killed_amid_its_search_ends_as_the_whole_one(descended, tmp_path, monkeypatch):
    out, _ = descended
    again = shutil.copytree(out, tmp_path / "run")
    shutil.rmtree(again / "front" / "macs-35pct")
    saved, settings = RunFolder.save_tensors, FrontSettings(caps=("60%", "35%"), epochs=2)

    def killed(folder, name, *rest):
        if name == "posterior.safetensors":
            raise KeyboardInterrupt
        return saved(folder, name, *rest)

    monkeypatch.setattr(RunFolder, "save_tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        front(again, settings)
    monkeypatch.undo()
    assert (again / "front" / "macs-35pct" / "checkpoints").exists()
    assert not (again / "front" / "macs-35pct" / "posterior.safetensors").exists()
    front(again, settings)
    for name in ("architecture.json", "posterior.safetensors", "found.safetensors"):
        both = [(run / "front" / "macs-35pct" / name).read_bytes() for run in (again, out)]
        assert both[0] == both[1]


def test_a_point_may_begin_with_the_search_of_the_next_larger_one(descended, tmp_path):
    again = shutil.copytree(descended[0], tmp_path / "run")
    shutil.rmtree(again / "front")
    made = front(again, FrontSettings(caps=("60%", "35%"), epochs=2, start="larger-search"))
    larger, smaller = (again / "front" / name for name in ("macs-60pct", "macs-35pct"))
    left, begun = load_file(larger / "posterior.safetensors"), load_file(smaller / "start.safetensors")
    assert left.keys() == begun.keys()
    assert all(torch.equal(value, begun[name]) for name, value in left.items())
    first = load_file(again / "posterior.safetensors")
    assert all(torch.equal(value, first[name]) for name, value in load_file(larger / "start.safetensors").items())
    full = json.loads((smaller / "result.json").read_text())["full"]["macs"]
    assert made.points[0]["macs"] <= 0.35 * full
    with pytest.raises(RunFolderError, match="another --start"):
        front(again, FrontSettings(caps=("35%",), epochs=2))


def test_a_front_of_a_finished_run_begins_with_the_network_that_it_found(tmp_path):
    out = tmp_path / "run"
    config = RunConfig(
        model="multibranch-resnet:width=4,stages=1,blocks=1", data="digits", out=str(out), epochs=4, candidates=3,
        max_macs="60%", batch_size=64, logit_lr=0.5,
    )  # fmt: skip
    result = stages.run(config)
    front(out, FrontSettings(caps=("80%", "60%", "35%"), epochs=2))
    found = Architecture.from_json(json.loads((out / "architecture.json").read_text()))
    trained = load_file(out / "found.safetensors")
    same, smaller, larger = (out / "front" / f"macs-{share}pct" for share in (60, 35, 80))
    handed = supernet_of(same)
    for name, value in pgnas.extract(handed, found).named_parameters():
        assert torch.equal(value.detach(), trained[name])
    outside = ~handed.gates.mask(found)
    assert outside.any()
    assert (torch.sigmoid(handed.gates.logits())[outside] == 0).all()
    assert json.loads((same / "architecture.json").read_text()) == found.to_json()  # what the run's cap allows
    kept = Architecture.from_json(json.loads((smaller / "architecture.json").read_text())).kept
    assert all(set(units) <= set(found.kept[name]) for name, units in kept.items())
    macs = [json.loads((path / "result.json").read_text())["found"]["macs"] for path in (smaller, same, larger)]
    assert macs[0] < macs[1] == result["found"]["macs"] < macs[2]


def test_a_point_of_one_epoch_trains_the_network_that_its_search_leaves(tmp_path):
    out = tmp_path / "run"
    config = RunConfig(
        model="multibranch-resnet:width=4,stages=1,blocks=1", data="digits", out=str(out), epochs=2, candidates=3,
        max_macs="60%", decide_at="never", batch_size=64, logit_lr=1.5,
    )  # fmt: skip
    stages.run(config, until="search")
    front(out, FrontSettings(caps=("30%",), epochs=1))
    point = out / "front" / "macs-30pct"
    rows = [json.loads(line) for line in (point / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["stage"] == "search"
    assert rows[-1]["stage"] == "train"
    before, after = load_file(point / "extracted.safetensors"), load_file(point / "found.safetensors")
    name = next(name for name, value in before.items() if value.ndim == 4)  # a kernel: no statistic
    assert not torch.equal(before[name], after[name])


def test_a_run_at_a_fixed_rate_with_streams_has_a_front(tmp_path):
    out = tmp_path / "run"
    config = RunConfig(
        model="multibranch-resnet:width=4,stages=1,blocks=1", data="digits", out=str(out), epochs=1, candidates=3,
        batch_size=64, fixed_drop=0.3, streams="on",
    )  # fmt: skip
    stages.run(config, until="search")
    (point,) = front(out, FrontSettings(caps=("50%",), epochs=0)).points
    full = json.loads((out / point["folder"] / "result.json").read_text())["full"]["macs"]
    assert point["macs"] <= 0.5 * full


def test_a_search_without_a_cap_has_a_front_too(tmp_path):
    out = tmp_path / "run"
    config = RunConfig(
        model="multibranch-resnet:width=4,stages=1,blocks=1", data="digits", out=str(out), epochs=1, candidates=3,
        batch_size=64,
    )  # fmt: skip
    stages.run(config, until="search")
    (point,) = front(out, FrontSettings(caps=("50%",), epochs=2)).points
    full = json.loads((out / point["folder"] / "result.json").read_text())["full"]["macs"]
    assert point["macs"] <= 0.5 * full


def supernet_of(folder):
    network = build_model(
        "multibranch-resnet:width=4,stages=1,blocks=1", in_channels=1, num_classes=10, image_size=(8, 8), seed=0
    ).module
    supernet = pgnas.supernet(network, torch.zeros(2, 1, 8, 8), streams=True)
    supernet.load_state_dict(load_file(folder / "posterior.safetensors"))
    return supernet
