"""What the found network, the ensemble and the full network predict, against the networks themselves."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import pgnas
from pgnas.bayes import fit_temperature, tempered
from pgnas.cli import main
from pgnas.config import RunConfig
from pgnas.errors import ConfigError, RunFolderError
from pgnas.progress import SilentReporter
from pgnas.run_folder import RunFolder
from pgnas.seeds import derive_seed
from pgnas.stages import pipeline, run
from pgnas.stages.context import Context
from pgnas.stages.ensemble import draw_members
from pgnas.stages.evaluating import evaluate
from pgnas.stages.pipeline import run_stage
from pgnas.stages.scores import auroc, scores
from pgnas.stages.searching import trained_network

from .forked import on_processes

SMALL = {"model": "multibranch-resnet:width=6,stages=2,blocks=1", "data": "digits", "batch_size": 64, "candidates": 4}
TOLERANT = {"rtol": 1e-3, "atol": 1e-4}


pytestmark = pytest.mark.usefixtures("weights_alone")


@pytest.fixture(scope="module")
def undecided(tmp_path_factory):
    out = tmp_path_factory.mktemp("never") / "run"
    given = {"epochs": 5, "granularity": "group", "decide_at": "never", "recalibrate": "off", "baseline": ("full",)}
    return run(RunConfig(out=str(out), **SMALL, **given))


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    out = tmp_path_factory.mktemp("early") / "run"
    return run(RunConfig(out=str(out), **SMALL, epochs=4, max_macs="60%", recalibrate="on"))


@pytest.fixture
def own(undecided, tmp_path):
    return shutil.copytree(undecided.path, tmp_path / "run")


def kept(result):
    return load_file(result.path / "predictions.safetensors")


def test_the_found_network_predicts_what_is_kept(undecided):
    data, values = pgnas.load_data("digits"), kept(undecided)
    for name, split in (("test", data.test), ("validation", data.estimate)):
        with torch.no_grad():
            wanted = F.log_softmax(undecided.model(data.preprocessing.normalise(split.images)), 1)
        torch.testing.assert_close(values[f"{name}.found"], wanted, **TOLERANT)
        assert torch.equal(values[f"{name}.labels"], split.labels)


def test_the_ensemble_is_the_average_over_samples_of_the_posterior(undecided):
    data, values = pgnas.load_data("digits"), kept(undecided)
    x = data.preprocessing.normalise(data.test.images)
    with RunFolder.open(undecided.path) as folder:
        supernet = Context(folder, SilentReporter()).posterior.eval()
    generator = torch.Generator().manual_seed(derive_seed(0, "ensemble"))
    probs = []
    for _ in range(16):
        with supernet.fixed(supernet.sample(generator=generator)), torch.no_grad():
            probs.append(supernet(x).softmax(1))
    mean = torch.stack(probs).mean(0)
    torch.testing.assert_close(values["test.ensemble"].exp(), mean, **TOLERANT)
    entropy = lambda p: -torch.xlogy(p, p).sum(-1)  # noqa: E731
    information = entropy(mean) - entropy(torch.stack(probs)).mean(0)
    torch.testing.assert_close(values["test.ensemble.mutual_information"], information, **TOLERANT)
    assert float(information.mean()) > 1e-3  # the posterior of a short run has not decided


def test_equal_samples_are_merged_and_more_samples_begin_with_the_same(undecided):
    with RunFolder.open(undecided.path) as folder:
        supernet = Context(folder, SilentReporter()).posterior
    few, many = (draw_members(supernet, count, seed=0) for count in (5, 40))
    assert sum(member.weight for member in many) == 40
    assert len({member.architecture.digest for member in many}) == len(many)
    assert [member.architecture for member in few] == [member.architecture for member in many[: len(few)]]


def test_scores_are_those_of_the_kept_predictions(undecided):
    values, networks = kept(undecided), undecided["uncertainty"]["networks"]
    assert set(networks) == {"found", "ensemble", "full"}
    labels = values["test.labels"]
    for name, scored in networks.items():
        log_probs = values[f"test.{name}"].double()
        assert scored["accuracy"]["value"] == pytest.approx(float((log_probs.argmax(1) == labels).double().mean()))
        assert scored["nll"]["value"] == pytest.approx(float(F.nll_loss(log_probs, labels)), rel=1e-5)
        for score in ("accuracy", "nll", "brier"):
            assert scored[score]["low"] < scored[score]["value"] < scored[score]["high"]
        assert scored["ece"]["low"] <= scored["ece"]["value"]
    assert networks["found"]["accuracy"]["value"] == pytest.approx(undecided["found"]["test_accuracy"])
    assert networks["full"]["accuracy"]["value"] == pytest.approx(undecided["baselines"]["full"]["test_accuracy"])
    members = networks["ensemble"]["members"]["nll"]
    assert networks["ensemble"]["nll"]["value"] < sum(members) / len(members)


def test_the_test_split_is_read_once_by_each_network(own, monkeypatch):
    before = json.loads((own / "result.json").read_text())
    read, held_out = [], Context.held_out

    def counted(self, split):
        read.append(split is self.data.test)
        return held_out(self, split)

    with RunFolder.open(own) as folder:
        folder.forget_from("evaluate")
        context = Context(folder, SilentReporter())
        plain = context.score(trained_network(context), context.data.test)
    monkeypatch.setattr(Context, "held_out", counted)
    after = run_stage(own, "evaluate").values
    assert sum(read) == 1 + len(after["uncertainty"]["networks"])  # the supernet's mean, and every source
    assert (plain.metric, plain.loss) == (after["found"]["test_accuracy"], after["found"]["test_loss"])
    for name in ("found", "supernet", "uncertainty", "choice", "sentence"):
        assert after[name] == before[name], name


def test_temperatures_are_fitted_on_validation_and_scored_on_test(undecided):
    values = kept(undecided)
    told = json.loads((undecided.path / "temperatures.json").read_text())
    for name, scored in undecided["uncertainty"]["networks"].items():
        fitted = fit_temperature(values[f"validation.{name}"], values["validation.labels"])
        assert told[name] == scored["temperature"] == pytest.approx(fitted, rel=1e-4)
        after = F.nll_loss(tempered(values[f"test.{name}"].double(), fitted), values["test.labels"])
        assert scored["calibrated"]["nll"]["value"] == pytest.approx(float(after), rel=1e-3)


def test_the_bins_of_the_reliability_diagram(undecided):
    diagrams = json.loads((undecided.path / "reliability.json").read_text())
    for name, scored in undecided["uncertainty"]["networks"].items():
        bins = diagrams[name]["bins"]
        assert [set(found) for found in bins] == [{"low", "high", "count", "confidence", "accuracy"}] * 15
        images = sum(found["count"] for found in bins)
        assert images == undecided["uncertainty"]["images"]
        error = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins if b["count"]) / images
        assert error == pytest.approx(scored["ece"]["value"], abs=1e-5)
        assert sum(found["count"] for found in diagrams[name]["calibrated"]) == images


def test_after_an_early_decision_the_ensemble_is_of_the_posterior_at_that_time(decided):
    networks = decided["uncertainty"]["networks"]
    assert set(networks) == {"found", "ensemble"}
    assert networks["found"]["nll"]["value"] < networks["ensemble"]["nll"]["value"]  # trained on, the others not


def test_more_samples_and_other_data(own, undecided, capsys):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (60, 8, 8), dtype=np.uint8)
    np.savez(own.parent / "noise.npz", x_train=noise, y_train=np.arange(60) % 2, x_test=noise, y_test=np.arange(60) % 2)
    before = json.loads((own / "result.json").read_text())
    assert main(["evaluate", str(own), "--samples", "3", "--ood", str(own.parent / "noise.npz")]) == 0
    shown = capsys.readouterr().out
    assert "average of 3 sampled networks" in shown
    after = json.loads((own / "result.json").read_text())
    assert after["uncertainty"]["samples"] == 3
    assert after["uncertainty"]["networks"]["found"] == before["uncertainty"]["networks"]["found"]
    assert after["uncertainty"]["networks"]["ensemble"] != before["uncertainty"]["networks"]["ensemble"]
    assert {key: after[key] for key in before if key != "uncertainty"} == {
        key: before[key] for key in before if key != "uncertainty"
    }
    (apart,) = after["uncertainty"]["ood"].values()
    assert set(apart) == {"images", "fingerprint", "found", "ensemble", "full"}
    assert set(apart["ensemble"]) == {"entropy", "mutual_information"}
    assert 0 <= apart["found"]["entropy"] <= 1
    stamp = (own / "predictions.safetensors").stat().st_mtime_ns
    assert main(["evaluate", str(own), "--samples", "3", "--ood", str(own.parent / "noise.npz")]) == 0
    assert json.loads((own / "result.json").read_text()) == after
    assert (own / "predictions.safetensors").stat().st_mtime_ns == stamp  # nothing is done twice
    spec = str(own.parent / "noise.npz")
    np.savez(own.parent / "more.npz", x_train=255 - noise, y_train=np.arange(60) % 2)
    assert main(["evaluate", str(own), "--ood", str(own.parent / "more.npz")]) == 0  # adds to what is there
    added = json.loads((own / "result.json").read_text())["uncertainty"]
    assert added["samples"] == 3
    assert added["ood"][spec] == apart
    assert len(added["ood"]) == 2
    both = on_processes(own.parent, lambda _: evaluate(own, samples=2, ood=[spec])["uncertainty"]["ood"][spec])
    assert both[0] == both[1]
    assert both[0]["found"] == apart["found"]
    again = evaluate(own, samples=16)
    assert again["uncertainty"] == undecided["uncertainty"]  # the same seed; the other data belong to other samples


def test_auroc_is_the_probability_that_the_other_is_higher():
    inside, outside = torch.tensor([0.1, 2.0, 0.3]), torch.tensor([0.2, 3.0])
    assert auroc(inside, outside) == pytest.approx((1 + 0 + 0 + 3) / 6)
    assert auroc(torch.zeros(4), torch.zeros(3)) == pytest.approx(0.5)
    tiny = torch.tensor([1e-12, 2e-12, 3e-12], dtype=torch.float64)
    assert auroc(tiny[:2], torch.cat([tiny[2:], torch.tensor([1.0])])) == pytest.approx(1)


def test_intervals_repeat_with_the_seed():
    log_probs = torch.log_softmax(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), 1)
    labels = torch.arange(50) % 3
    assert scores(log_probs, labels, seed=1) == scores(log_probs, labels, seed=1) != scores(log_probs, labels, seed=2)


def test_what_cannot_be_asked_is_refused(own, tmp_path, capsys, monkeypatch):
    with pytest.raises(ConfigError, match="--samples"):
        evaluate(own, samples=0)
    with pytest.raises(RunFolderError, match="run folder"):
        evaluate(tmp_path, samples=2)
    colours = np.zeros((20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "rgb.npz", x_train=colours, y_train=np.arange(20) % 2)
    before = (own / "result.json").read_bytes()
    monkeypatch.setattr(pipeline, "run_stage", lambda *_, **__: pytest.fail("the stage began first"))
    assert main(["evaluate", str(own), "--ood", str(tmp_path / "rgb.npz")]) == 2
    assert "must give images of 1x8x8" in capsys.readouterr().err
    assert main(["evaluate", str(own), "--ood", str(tmp_path / "nowhere")]) == 2
    assert (own / "result.json").read_bytes() == before
