"""What an optimiser remembers is cut, renamed and kept like the weights it is of."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pgnas import stages
from pgnas.cli import main
from pgnas.config import RunConfig
from pgnas.errors import ConfigError, RunFolderError
from pgnas.run_folder import RunFolder
from pgnas.stages.epochs import digest
from pgnas.stages.moments import (
    each_moment,
    from_tensors,
    make_optimizer,
    moments_of,
    no_moments,
    renamed,
    set_moments,
    to_tensors,
)
from pgnas.stages.schedule import CosineSchedule

KINDS = ("sgd", "adamw")
SCHEDULE = CosineSchedule(0.01, 10, 0, floor=0.01)


def make(kind, layer):
    return make_optimizer(kind, list(layer.parameters()), SCHEDULE, 0.1, 0.9)


def step(layer, optimizer, seed):
    optimizer.zero_grad()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    layer(x).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_that_is_handed_the_moments_goes_on_as_the_first(kind):
    torch.manual_seed(0)
    one, other = nn.Linear(4, 3), nn.Linear(4, 3)
    first = make(kind, one)
    assert moments_of(first, dict(one.named_parameters())) == {}
    for seed in range(3):
        step(one, first, seed)
    other.load_state_dict(one.state_dict())
    second = make(kind, other)
    tensors = to_tensors(moments_of(first, {f"a.{name}": p for name, p in one.named_parameters()}))
    back = renamed(from_tensors(tensors), {name: f"a.{name}" for name, _ in other.named_parameters()})
    set_moments(second, dict(other.named_parameters()), back)
    for seed in range(3, 6):
        step(one, first, seed)
        step(other, second, seed)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_of_nothing_are_those_of_a_new_optimizer(kind):
    torch.manual_seed(0)
    one, other = nn.Linear(4, 3), nn.Linear(4, 3)
    other.load_state_dict(one.state_dict())
    first, second = make(kind, one), make(kind, other)
    set_moments(second, dict(other.named_parameters()), no_moments(second, dict(other.named_parameters())))
    for seed in range(3):
        step(one, first, seed)
        step(other, second, seed)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_states_are_alike_in_whatever_order_a_file_has_its_tensors():
    layers = [nn.Linear(4, 3) for _ in range(2)]
    optimizers = [make("adamw", layer) for layer in layers]
    step(layers[0], optimizers[0], 0)
    kept = moments_of(optimizers[0], dict(layers[0].named_parameters()))
    for layer, optimizer, moments in zip(layers, optimizers, (kept, dict(reversed(kept.items()))), strict=True):
        optimizer.state.clear()
        set_moments(optimizer, dict(layer.named_parameters()), moments)
    assert digest(optimizers[0].state_dict()) == digest(optimizers[1].state_dict())


@pytest.mark.parametrize("slot", ["momentum_buffer", "exp_avg_sq"])
def test_names_of_parameters_may_have_colons(slot):
    moments = {slot: {"ways.sep:3x3.weight": torch.ones(2), "a": torch.zeros(1)}}
    assert from_tensors(to_tensors(moments)) == moments


def test_the_number_of_steps_is_not_cut():
    layer = nn.Linear(4, 3)
    optimizer = make("adamw", layer)
    step(layer, optimizer, 0)
    halved = each_moment(moments_of(optimizer, dict(layer.named_parameters())), lambda name, value: value[:2])
    assert {slot: tuple(values["weight"].shape) for slot, values in halved.items()} == {
        "exp_avg": (2, 4), "exp_avg_sq": (2, 4), "step": ()
    }  # fmt: skip


def test_defaults_follow_the_optimizer(tmp_path):
    required = {"model": "x", "data": "digits", "out": "y"}
    assert [RunConfig(optimizer=kind, **required).peak_lr for kind in KINDS] == [0.1, 0.001]
    assert RunConfig(optimizer="adamw", lr=0.5, **required).peak_lr == 0.5
    with pytest.raises(ConfigError, match=r"--lr-floor must be at most --lr 0\.001"):
        RunConfig(optimizer="adamw", lr_floor=0.01, **required)
    out = tmp_path / "run"
    assert main(["run", "--model", "x", "--data", "digits", "--out", str(out), "--optimizer", "adam"]) == 2
    assert not out.exists()


def test_a_run_with_adamw_trains_its_found_network_on_with_what_the_search_remembers(tmp_path, monkeypatch):
    out = tmp_path / "run"
    handed = {}

    def noted(optimizer, named, moments):
        handed.update(to_tensors(moments))
        set_moments(optimizer, named, moments)

    monkeypatch.setattr("pgnas.stages.phases.set_moments", noted)
    result = stages.run(
        RunConfig(
            model="multibranch-resnet:width=4,stages=1,blocks=1", data="digits", out=str(out), epochs=3, candidates=3,
            max_macs="60%", decide_at="67%", optimizer="adamw", compile="off", batch_size=64,
        )
    )  # fmt: skip
    kept = from_tensors(load_file(out / "momentum.safetensors"))
    assert kept.keys() == {"exp_avg", "exp_avg_sq", "step"}
    steps = {int(value) for value in kept["step"].values()}
    assert len(steps) == 1
    assert steps.pop() > 0
    assert any(key.startswith("exp_avg_sq:") for key in handed)
    assert "--optimizer adamw" in (out / "report.html").read_text()
    assert json.loads((out / "result.json").read_text())["found"]["macs"] <= 0.6 * result["full"]["macs"]


def test_a_run_begun_with_the_learning_rate_written_down_goes_on_without(tmp_path):
    config = RunConfig(model="x", data="digits", out=str(tmp_path / "run"), lr=0.1)
    RunFolder.create_or_resume(config).close()
    RunFolder.create_or_resume(replace(config, lr=None)).close()
    with pytest.raises(RunFolderError, match=r"lr: 0\.1 there, 0\.001 now"):
        RunFolder.create_or_resume(replace(config, lr=None, optimizer="adamw"))
