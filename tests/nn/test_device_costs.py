"""Timings of a network's operations: what is fitted, predicted, saved and refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import pgnas
from pgnas.errors import FileError, ModelError
from pgnas.nn import stopwatch, timing
from pgnas.nn.device_costs import DeviceCosts
from pgnas.nn.macs import layer_macs
from pgnas.nn.stopwatch import measure_device


def network():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 32, 3, padding=1, groups=4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 8),
    )  # fmt: skip


@pytest.fixture
def supernet():
    torch.manual_seed(0)
    return pgnas.supernet(network(), torch.randn(2, 3, 8, 8))


@pytest.fixture
def clock(monkeypatch):
    """A device on which time is known: a microsecond a multiply-add and a call, nothing else; picks aside."""

    def seconds(function, *, at_least=0.02):
        spent = [1e-6]

        def hook(layer, args, output):
            spent.append(1e-6 * layer_macs(layer, tuple(args[0].shape), tuple(output.shape)))

        handle = nn.modules.module.register_module_forward_hook(hook)
        try:
            function()
        finally:
            handle.remove()
        return sum(spent)

    monkeypatch.setattr(stopwatch, "seconds", seconds)


@pytest.mark.parametrize("batch", [1, 3])
def test_where_time_is_multiply_adds_it_is_predicted_exactly(supernet, clock, batch):
    costs = measure_device(supernet.graph, batch=batch)
    supernet.device_costs = costs
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        architecture = supernet.sample(generator=generator)
        macs = supernet.count(architecture).macs
        computed = supernet.plan(architecture).computed
        nodes = sum(bool(computed[name].any()) for name in costs.prices)
        assert supernet.latency(architecture) == pytest.approx(1e-6 * (batch * macs + nodes), rel=1e-4)


def test_the_expected_latency_of_a_decided_posterior_is_the_predicted_one():
    plain = nn.Sequential(*(layer for layer in network() if getattr(layer, "groups", 1) != 4))
    plain[-1] = nn.Linear(16, 8)
    supernet = pgnas.supernet(plain, torch.randn(2, 3, 8, 8), gate_inputs=True)
    supernet.device_costs = measure_device(supernet.graph)
    for keep in (True, False):
        with torch.no_grad():
            supernet.gates.unit_logits.fill_(60.0)
            supernet.gates.unit_logits[1::2] = 60.0 if keep else -60.0
        share = supernet.expected_cost("latency").item()
        full = supernet.latency(supernet.open())
        assert share * full == pytest.approx(supernet.latency(supernet.mode()), rel=0.05)


def test_expected_latency_has_a_gradient_that_closes_gates(supernet):
    supernet.device_costs = measure_device(supernet.graph)
    supernet.expected_cost("latency").backward()
    assert (supernet.gates.unit_logits.grad >= 0).all()
    assert supernet.gates.unit_logits.grad.sum() > 0


@pytest.mark.parametrize("training", [False, True])
def test_measuring_changes_nothing_of_the_network(supernet, training):
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    modes = [module.training for module in supernet.modules()]
    state = torch.get_rng_state()
    costs = measure_device(supernet.graph, training=training)
    assert costs.network > 0
    assert costs.pick_seconds(1000) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in supernet.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
    assert all(p.grad is None for p in supernet.parameters())


def test_costs_survive_a_file(supernet):
    costs = measure_device(supernet.graph)
    again = DeviceCosts.from_json(json.loads(json.dumps(costs.to_json())), subject="file", graph=supernet.graph)
    assert again == costs


@pytest.mark.parametrize(
    "change",
    [
        lambda v: [],
        lambda v: v | {"format": "other"},
        lambda v: {k: x for k, x in v.items() if k != "pick"},
        lambda v: v | {"network": float("nan")},
        lambda v: v | {"prices": {name: [-1, 0, 0] for name in v["prices"]}},
        lambda v: v | {"prices": {"other": [1, 1, 1]}},
        lambda v: v | {"prices": {name: [0] for name in v["prices"]} | {"x": 3}},
    ],
)
def test_other_files_are_refused(supernet, change):
    values = measure_device(supernet.graph).to_json()
    with pytest.raises(FileError, match="file"):
        DeviceCosts.from_json(change(values), subject="file", graph=supernet.graph)


def test_latency_must_be_measured_before_it_is_predicted(supernet):
    with pytest.raises(ModelError, match="measured"):
        supernet.expected_cost("latency")
    with pytest.raises(ModelError, match="measured"):
        supernet.latency(supernet.open())


def test_timing_a_module_leaves_its_modes_alone():
    module = network()
    module[1].eval()
    modes = [part.training for part in module.modules()]
    assert timing.latency(module, (torch.randn(2, 3, 8, 8),), at_least=0.01) > 0
    assert [part.training for part in module.modules()] == modes
    assert module[1].num_batches_tracked == 0
