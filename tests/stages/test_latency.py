"""The latency cap: the clock has the last word."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import pgnas
from pgnas.config import RunConfig
from pgnas.errors import ConfigError, RunError, RunFolderError
from pgnas.progress import SilentReporter
from pgnas.run_folder import RunFolder, SharedFolder
from pgnas.stages import baselines
from pgnas.stages import latency as latency_module
from pgnas.stages.context import Context
from pgnas.stages.latency import Measured, meet_latency
from pgnas.stages.training import Score

from .forked import on_processes

SETTINGS = {"epochs": 2, "candidates": 4, "decide_at": "50%", "device": "cpu"}


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(latency_module, "latency", Clock(None, 1e-9))  # no clock of a busy machine decides
    return pgnas.run(model=tiny(), data="digits", out=tmp_path / "run", max_latency="90%", round_to=2, **SETTINGS)


def test_a_run_under_a_latency_cap_reports_what_the_clock_said(run, tmp_path):
    found, full = run["found"]["latency_ms"], run["full"]["latency_ms"]
    assert 0 < found <= 0.9 * full
    assert run["found"]["macs"] < run["full"]["macs"]
    assert " ms" in "\n".join(run.summary())
    assert json.loads((run.path / "device_costs.json").read_text())["training"] is False
    kept = json.loads((run.path / "architecture.json").read_text())
    assert all(len(units) % 2 == 0 for units in pgnas.Architecture.from_json(kept).kept.values())
    again = pgnas.run(
        model=tiny(), data="digits", out=tmp_path / "again", max_latency="90%", round_to=2,
        device_costs=str(run.path), **SETTINGS,
    )  # fmt: skip
    for name in ("device_costs.json", "device_costs_training.json"):
        assert (again.path / name).read_bytes() == (run.path / name).read_bytes()


def test_timings_of_another_network_or_of_no_run_are_refused(run, tmp_path):
    other = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10))
    out = tmp_path / "other"
    with pytest.raises(pgnas.PgnasError, match="this network"):
        pgnas.run(model=other, data="digits", out=out, max_latency="90%", device_costs=str(run.path), **SETTINGS)
    with pytest.raises(RunFolderError, match="device-costs"):
        pgnas.run(model=other, data="digits", out=out, max_latency="90%", device_costs=str(tmp_path), **SETTINGS)
    assert not out.exists()


def test_a_cap_above_the_networks_own_latency_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="max-latency"):
        pgnas.run(model=tiny(), data="digits", out=tmp_path / "run", max_latency="900s", **SETTINGS)


@pytest.fixture
def searched():
    """A supernet, a recipe with a latency cap, and the winner among its candidates."""
    data = [(torch.randn(8, 1, 8, 8), torch.randint(10, (8,))) for _ in range(2)]
    supernet = pgnas.supernet(tiny(), torch.randn(2, 1, 8, 8))
    caught = {}

    def catch(recipe, supernet, winner, score, example, **options):
        caught.update(recipe=recipe, supernet=supernet, winner=winner, example=example)
        return Measured(winner, 1.0, 1.0, 1)  # of no clock: another process may keep the core from this one

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgnas.stages.search_api.meet_latency", catch)
        pgnas.search(supernet, data, data, epochs=2, max_latency="99%", candidates=3, device="cpu")
    return caught


class Clock:
    """A device whose networks take so long for every multiply-add."""

    def __init__(self, supernet, seconds_a_mac):
        self.seconds_a_mac, self.timed = seconds_a_mac, 0

    def __call__(self, module, inputs, **options):
        self.timed += 1
        return self.seconds_a_mac * pgnas.measure(module, inputs).macs


def test_a_network_over_the_cap_by_the_clock_loses_units_until_it_is_under(searched, monkeypatch):
    recipe, supernet, winner = searched["recipe"], searched["supernet"], searched["winner"]
    cap = recipe.caps["latency"]
    # by this clock the winner takes a third longer than allowed, relative to the full network
    full = supernet.count(supernet.open()).macs
    monkeypatch.setattr(type(recipe), "latency_is_relative", False)
    clock = Clock(supernet, cap / (0.75 * winner.counts.macs))
    monkeypatch.setattr(latency_module, "latency", clock)
    measured = meet_latency(recipe, supernet, winner, lambda module: Score(0.5, 1.0, 1), searched["example"])
    assert measured.seconds <= cap
    assert measured.attempts > 1
    assert measured.full_seconds == pytest.approx(clock.seconds_a_mac * full)
    assert measured.candidate.counts.macs < winner.counts.macs
    assert measured.candidate.score == Score(0.5, 1.0, 1)
    before, after = (supernet.gates.mask(c.architecture) for c in (winner, measured.candidate))
    assert not (after & ~before).any()


def test_a_cap_that_no_network_meets_ends_the_run_with_an_error(searched, monkeypatch):
    monkeypatch.setattr(latency_module, "latency", lambda module, inputs: 1e6)
    monkeypatch.setattr(type(searched["recipe"]), "latency_is_relative", False)
    with pytest.raises(RunError, match="max-latency"):
        meet_latency(
            searched["recipe"], searched["supernet"], searched["winner"], lambda module: Score(0.5, 1.0, 1),
            searched["example"],
        )  # fmt: skip


def test_every_process_takes_the_uniform_network_that_the_first_ones_clock_chose(tmp_path, monkeypatch):
    config = RunConfig(
        model="multibranch-resnet:width=8,stages=1,blocks=1", data="digits", out=str(tmp_path / "run"), device="cpu",
        epochs=1, max_latency="50%", baseline=("uniform",),
    )  # fmt: skip

    def chosen(processes):
        def seconds(module, inputs):
            assert len(inputs[0]) == config.latency_batch
            return sum(p.numel() for p in module.parameters()) * (1 + processes.rank)

        monkeypatch.setattr(baselines, "latency", seconds)
        monkeypatch.setattr(Context, "caps", {"latency": 600.0})
        with SharedFolder.share(processes, lambda: RunFolder.create_or_resume(config)) as folder:
            network, spec = baselines._network(Context(folder, SilentReporter(), processes=processes), "uniform")
            return spec, sum(p.numel() for p in network.parameters())

    first, second = on_processes(tmp_path, chosen)
    assert first == second
    assert first[1] <= 600
