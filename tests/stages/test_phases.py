"""The objective of the search against formulas written out by hand; caps; the decision."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pgnas
from pgnas.bayes import BernoulliPrior, CapController, GibbsPrior, PaperPrior
from pgnas.errors import DivergedError
from pgnas.progress import SilentReporter
from pgnas.stages import phases
from pgnas.stages.engine import make_engine, worth_compiling
from pgnas.stages.epochs import run_epochs
from pgnas.stages.phases import PosteriorPhase, PosteriorSettings
from pgnas.stages.schedule import cosine_schedule
from pgnas.stages.training import NoStore


@pytest.fixture(scope="module")
def engine():
    return make_engine("cpu", "fp32")


def make_supernet(granularity="group", drop=0.1, tau=0.2):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 3),
    )  # fmt: skip
    return pgnas.supernet(network, torch.randn(2, 2, 4, 4), granularity, initial_drop=drop, temperature=tau)


def make_phase(supernet, engine, prior, caps=None, steps=100, **settings):
    chosen = PosteriorSettings(prior, 5000.0, caps or {}, steps, **settings)
    return PosteriorPhase(supernet, chosen, engine=engine, schedule=cosine_schedule(0.05, steps), loss=F.cross_entropy)


def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(16, 2, 4, 4, generator=generator), torch.randint(3, (16,), generator=generator)


def test_the_papers_objective_written_out(engine):
    """-log likelihood of the relaxed sample + (1/N) sum_groups [pi l^2 |m_g|^2 - K_g H(pi)], from scratch."""
    supernet, (x, y) = make_supernet(), batch()
    phase = make_phase(supernet, engine, PaperPrior(30.0))
    torch.manual_seed(11)
    value = phase.loss((x,), y, 0)
    torch.manual_seed(11)
    u = torch.rand(16, supernet.gates.units).double()
    first, second, last = (supernet.body.get_submodule(name).double() for name in ("0", "2", "5"))
    logistic = math.log(0.9 / 0.1) + torch.log(u) - torch.log(1 - u)
    z = torch.sigmoid(logistic / 0.2)
    h = F.relu(first(x.double()))
    h = F.relu(second(h * z[:, :6, None, None]))
    logits = last(h.flatten(1) * z[:, 6:].repeat_interleave(16, 1))
    nll = F.cross_entropy(logits, y)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    kl = 30.0 * 0.9 * (second.weight.square().sum() + last.weight.square().sum()) - 10 * entropy
    assert value.item() == pytest.approx((nll + kl / 5000).item(), rel=1e-6)


@pytest.mark.parametrize("prior", [BernoulliPrior(0.3), GibbsPrior(), PaperPrior(3.0)])
@pytest.mark.parametrize("granularity", ["channel", "group", "product"])
def test_every_prior_trains_logits_and_weights(engine, prior, granularity):
    supernet, (x, y) = make_supernet(granularity), batch()
    phase = make_phase(supernet, engine, prior)
    phase.loss((x,), y, 0).backward()
    for parameter in supernet.gates.parameters():
        assert parameter.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in supernet.weight_parameters())


@pytest.mark.parametrize("granularity", ["channel", "product"])
def test_the_expected_cost_meets_its_cap_by_the_decision(engine, granularity):
    supernet, (x, y) = make_supernet(granularity, drop=0.02, tau=0.5), batch()
    loader = [(x, y)] * 30
    phase = make_phase(supernet, engine, GibbsPrior(), {"macs": 0.4, "params": 0.5}, steps=300)
    store = NoStore()
    run_epochs(phase, loader, epochs=range(10), seed=0, store=store, progress=SilentReporter())
    assert store.rows[0]["cost"] > 0.8
    assert supernet.expected_cost("macs").item() <= 0.42
    assert supernet.expected_cost("params").item() <= 0.52
    assert store.rows[-1]["target"] == pytest.approx(0.4)
    assert store.rows[-1]["lambda"] > 0


def test_the_caps_target_falls_from_the_full_network_and_is_in_force_before_the_decision():
    settings = PosteriorSettings(GibbsPrior(), 1.0, {"macs": 0.3}, 1000)
    targets = [settings.target(0.3, step) for step in range(0, 1001, 10)]
    assert targets[0] == 1.0
    assert targets[-1] == pytest.approx(0.3)
    assert settings.target(0.3, 750) == pytest.approx(0.3)
    assert sorted(targets, reverse=True) == targets
    later = [settings.target(0.3, step, begun=0.5) for step in range(0, 1001, 10)]  # of a search that goes on
    assert later[0] == 0.5
    assert later[-1] == pytest.approx(0.3)
    assert settings.target(0.3, 0, begun=0.2) == pytest.approx(0.3)


def test_a_phase_ends_with_the_average_of_its_weights(engine):
    supernet, (x, y) = make_supernet(), batch()
    phase = make_phase(supernet, engine, GibbsPrior(), averaging=4.0)
    wanted = {name: value.detach().clone() for name, value in supernet.body.named_parameters()}
    finish = phase.finish_step

    def watched(step):
        for name, value in supernet.body.named_parameters():
            wanted[name] += (value.detach() - wanted[name]) / 4
        finish(step)

    phase.finish_step = watched
    run_epochs(phase, [(x, y)] * 5, epochs=range(2), seed=0, store=NoStore(), progress=SilentReporter())
    last = {name: value.detach().clone() for name, value in supernet.body.named_parameters()}
    phase.settle()
    for name, value in supernet.body.named_parameters():
        torch.testing.assert_close(value.detach(), wanted[name])
        assert not torch.allclose(value, last[name])


def test_a_search_begun_without_an_average_begins_it_when_it_goes_on(engine):
    before, after = (make_phase(make_supernet(), engine, GibbsPrior(), averaging=a) for a in (0.0, 4.0))
    run_epochs(before, [batch()] * 5, epochs=range(1), seed=0, store=NoStore(), progress=SilentReporter())
    state = before.state()
    del state["average"]
    after.load_state(state)
    for name, value in before.whole.body.named_parameters():
        assert torch.equal(after.average[name], value)


def test_compilation_is_decided_by_planned_work_alone():
    cpu = torch.device("cpu")
    assert worth_compiling("on", 0.0, cpu)[0]
    assert not worth_compiling("off", 1e30, cpu)[0]
    assert not worth_compiling("auto", 1e9, cpu)[0]
    assert worth_compiling("auto", 1e14, cpu)[0] or "no C++ compiler" in worth_compiling("auto", 1e14, cpu)[1]
    assert "repay" in worth_compiling("auto", 1e9, cpu)[1] or "compiler" in worth_compiling("auto", 1e9, cpu)[1]


def test_weights_learn_alone_at_first_and_the_cap_does_not_press_yet(engine):
    torch.manual_seed(0)
    edge = pgnas.OneOf({"skip": nn.Identity(), "conv": nn.Conv2d(4, 4, 3, padding=1)})
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), edge, nn.Flatten(), nn.Linear(64, 3))
    supernet, (x, y) = pgnas.supernet(network, torch.randn(2, 2, 4, 4), "operation"), batch()
    phase = make_phase(supernet, engine, GibbsPrior(), {"macs": 0.7}, steps=20, weights_only=5)
    assert phase.settings.target(0.7, 5 + 1) > 0.99
    assert phase.settings.target(0.7, 20) == 0.7
    weights = [p.detach().clone() for p in supernet.weight_parameters()]
    for step in range(5):
        phase.step((x,), y, step)
        assert supernet.gates.choice_logits.detach().abs().sum() == 0
        assert phase.controllers["macs"].multiplier == 0
    assert all(not torch.equal(a, b) for a, b in zip(weights, supernet.weight_parameters(), strict=True))
    phase.step((x,), y, 5)
    assert supernet.gates.choice_logits.detach().abs().sum() > 0
    assert float(phase.logits["logits"].state[supernet.gates.choice_logits]["step"]) == 1  # no moments from before
    shares = phase.measure()["keep_by_gate"]
    assert set(shares) == {"1 skip", "1 conv"}
    assert sum(shares.values()) == pytest.approx(1)


def test_the_same_relative_excess_weighs_more_the_lower_the_target_in_force():
    """In shares of the full network all excesses over a low target are small; the tuned constants hold at 40 %."""
    tuned = phases.stiffened(CapController(target=0.4))
    assert (tuned.step, tuned.damping) == (phases.DUAL_STEP, phases.DAMPING)
    assert phases.stiffened(CapController(multiplier=0.7, target=0.8)) == replace(tuned, multiplier=0.7, target=0.8)
    for share in (0.02, 0.065, 0.25):
        controller = phases.stiffened(CapController(target=share)).update(1.5 * share, share)
        reference = tuned.update(1.5 * 0.4, 0.4)
        ratio = 0.4 / share  # of multipliers per relative cost, and of penalties
        assert controller.multiplier * share == pytest.approx(ratio * reference.multiplier * 0.4)
        penalties = [float(c.penalty(torch.tensor(1.5 * c.target))) for c in (controller, reference)]
        assert penalties[0] == pytest.approx(ratio * penalties[1], rel=1e-4)


def test_one_scaler_serves_both_optimisers_and_is_part_of_the_state(engine):
    """With a power of two as the scale fp16's way of stepping changes no bit; its scale grows once a step at most."""
    (x, y), states, scalers = batch(), [], []
    for scaled in (False, True):
        supernet = make_supernet("channel")
        phase = make_phase(supernet, engine, GibbsPrior(), {"macs": 0.7}, steps=20, weights_only=2)
        if scaled:
            phase.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        for step in range(5):
            phase.step((x,), y, step)
            if scaled:
                scalers.append(phase.scaler.get_scale())
        states.append(phase.state())
    assert scalers == [2.0**10] * 2 + [2.0**11] * 3
    for name, value in states[0]["network"].items():
        assert torch.equal(value, states[1]["network"][name]), name
    again = make_phase(make_supernet("channel"), engine, GibbsPrior(), {"macs": 0.7}, steps=20)
    again.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    again.load_state(states[1])
    assert again.scaler.state_dict() == states[1]["scaler"]


def test_logits_that_are_no_numbers_any_more_are_a_divergence(engine):
    phase, (x, y) = make_phase(make_supernet("channel"), engine, GibbsPrior(), {"macs": 0.7}), batch()
    phase.step((x,), y, 0)
    with torch.no_grad():
        phase.supernet.gates.unit_logits.fill_(math.nan)
    with pytest.raises(DivergedError, match="lower --lr"):
        phase.step((x,), y, 1)
