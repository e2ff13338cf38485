"""Gates at a fixed rate: random search, and at rate 0 the full network."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pgnas
from pgnas.bayes import PaperPrior
from pgnas.stages.engine import make_engine
from pgnas.stages.fitting import draw
from pgnas.stages.phases import PosteriorPhase, PosteriorSettings
from pgnas.stages.schedule import cosine_schedule

LENGTH_SCALE_SQ, DATA_SIZE = 30.0, 500.0


@pytest.fixture(scope="module")
def engine():
    return make_engine("cpu", "fp32")


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 3)
    )


def make_phase(engine, drop, granularity="group"):
    network = make_network()
    supernet = pgnas.supernet(network, torch.randn(2, 2, 4, 4), granularity, temperature=0.2)
    supernet.gates.fix_(1 - drop)
    settings = PosteriorSettings(PaperPrior(LENGTH_SCALE_SQ), DATA_SIZE, {}, 10, logit_lr=None, weight_decay=0.0)
    schedule = cosine_schedule(0.05, 10)
    return PosteriorPhase(supernet, settings, engine=engine, schedule=schedule, loss=F.cross_entropy), network


def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(16, 2, 4, 4, generator=generator), torch.randint(3, (16,), generator=generator)


@pytest.mark.parametrize("granularity", ["channel", "group", "product"])
def test_at_rate_0_the_full_network_is_trained_with_the_weight_term_as_a_plain_decay(engine, granularity):
    """At pi = 1 the objective is -log likelihood + (l^2 / N) |m|^2 over the gated layers, whatever the noise."""
    phase, network = make_phase(engine, 0.0, granularity)
    x, y = batch()
    plain = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    phase.supernet.train()
    for step in range(3):
        plain.param_groups[0]["lr"] = phase.schedule.at(step)
        plain.zero_grad()
        weight_sq = network[3].weight.square().sum() + network[5].weight.square().sum()
        expected = F.cross_entropy(network(x), y) + LENGTH_SCALE_SQ / DATA_SIZE * weight_sq
        expected.backward()
        plain.step()
        phase.prepare_step(step)
        assert float(phase.step((x,), y, step)) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(phase.supernet.body.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_nothing_is_learned_about_the_gates_while_the_weights_are(engine):
    phase, network = make_phase(engine, 0.3)
    before = [p.clone() for p in phase.supernet.gates.parameters()]
    phase.supernet.train()
    for step in range(3):
        phase.prepare_step(step)
        phase.step(*((batch()[0],), batch()[1]), step)
    assert all(torch.equal(p, q) for p, q in zip(phase.supernet.gates.parameters(), before, strict=True))
    assert list(phase.optimizers()) == ["weights"]
    assert not torch.equal(phase.supernet.body.get_submodule("3").weight, network[3].weight)


def test_random_candidates_drop_at_the_rate_and_the_full_network_is_not_among_them():
    supernet = pgnas.supernet(nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)), torch.randn(2, 6))
    supernet.gates.fix_(0.7)
    generator = torch.Generator().manual_seed(0)
    drawn = draw(supernet, 100, {}, generator=generator, with_mode=False)
    assert len(drawn) == 100
    assert not any(candidate.is_mode for candidate in drawn)
    kept = sum(len(units) for c in drawn for units in c.architecture.kept.values()) / (100 * supernet.gates.units)
    assert kept == pytest.approx(0.7, abs=0.03)  # 4 standard deviations of 4000 coins are 0.029
    assert all(c.architecture != supernet.open() for c in drawn)
