"""Re-targeting against the ELBO itself: where the shift leads, its derivative by pi is zero."""

from __future__ import annotations

import pytest
import torch

from pgnas.bayes import cost_slopes, gibbs_kl, retarget
from pgnas.errors import InputError

N = 1000.0
UNITS = 7


def generator():
    return torch.Generator().manual_seed(0)


def linear_cost(weights):
    return lambda logits: (weights * torch.sigmoid(logits)).sum()


def bilinear_cost(weights):
    """Two layers: cost = (sum of the first gates) x (sum of the second) x weight, normalised; multilinear in pi."""

    def cost(logits):
        pi = torch.sigmoid(logits)
        return weights[0] * pi[:3].sum() * pi[3:].sum() + (weights * pi).sum()

    return cost


def derivative(pi, slope_of_nll, cost_of_pi, multiplier):
    """d/d pi of the ELBO's loss, by autograd through the project's own KL."""
    pi = pi.clone().requires_grad_()
    logits = torch.log(pi) - torch.log1p(-pi)
    kl = gibbs_kl(logits, cost_of_pi(logits), multiplier=multiplier, data_size=N)
    loss = (slope_of_nll * pi).sum() + kl / N
    return torch.autograd.grad(loss, pi)[0]


def test_the_shift_is_the_stationarity_condition_of_the_elbo():
    """The likelihood's slopes are chosen so that the first posterior is stationary at lambda 0.3."""
    weights = torch.rand(UNITS, generator=generator(), dtype=torch.float64) / UNITS
    logits = 2 * torch.randn(UNITS, generator=generator(), dtype=torch.float64)
    for make in (linear_cost, bilinear_cost):
        cost = make(weights)
        slopes = cost_slopes(cost, logits)
        likelihood = -(logits / N) - 0.3 * slopes
        pi = torch.sigmoid(logits)
        assert derivative(pi, likelihood, cost, 0.3).abs().max() < 1e-12
        found = retarget(logits, slopes, cost, 0.5 * float(cost(logits)))
        assert found.cost == pytest.approx(0.5 * float(cost(logits)), abs=1e-9)
        frozen = linear_cost(slopes)  # the cost to first order about the first posterior
        new = torch.sigmoid(found.logits)
        assert derivative(new, likelihood, frozen, 0.3 + found.shift / N).abs().max() < 1e-12
        if make is linear_cost:
            assert derivative(new, likelihood, cost, 0.3 + found.shift / N).abs().max() < 1e-12


def test_slopes_are_the_cost_of_opening_a_unit():
    """E[cost | open] - E[cost | closed], unit by unit, also where a gate is as good as decided."""
    weights = torch.rand(UNITS, generator=generator(), dtype=torch.float64)
    cost = bilinear_cost(weights)
    logits = torch.tensor([-8.0, 8.0, 0.3, -200.0, 1.0, -1.0, 8.0], dtype=torch.float64)
    slopes = cost_slopes(cost, logits)
    for unit in range(UNITS):
        opened, closed = logits.clone(), logits.clone()
        opened[unit], closed[unit] = 200.0, -200.0
        assert float(slopes[unit]) == pytest.approx(float(cost(opened) - cost(closed)), rel=1e-4)


def test_targets_in_both_directions_are_met_in_float32():
    weights = torch.rand(50, generator=generator())
    cost, logits = linear_cost(weights / weights.sum()), torch.randn(50, generator=generator())
    slopes = cost_slopes(cost, logits)
    for target in (0.05, 0.3, 0.6, 0.95):
        found = retarget(logits, slopes, cost, target)
        assert found.cost == pytest.approx(target, abs=1e-5)
        assert found.cost <= target
        assert (found.shift > 0) == (target < float(cost(logits)))


def test_what_everything_open_costs_is_met_but_for_a_thousandth():
    weights = torch.rand(50, generator=generator())
    cost, logits = linear_cost(weights / weights.sum()), torch.randn(50, generator=generator())
    found = retarget(logits, cost_slopes(cost, logits), cost, 1.0)
    assert found.cost == pytest.approx(0.999, abs=1e-5)
    assert found.logits.abs().max() < 1e4


def test_targets_are_met_where_gates_decide_about_little():
    cost = lambda logits: 0.9995 + linear_cost(torch.full((2,), 0.00025))(logits)  # noqa: E731
    logits = torch.zeros(2, dtype=torch.float64)
    for target in (0.9996, 0.9999):
        assert retarget(logits, cost_slopes(cost, logits), cost, target).cost == pytest.approx(target, abs=1e-9)
    assert retarget(logits, cost_slopes(cost, logits), cost, 1.0).cost == pytest.approx(1 - 0.5e-6, abs=1e-9)


def test_costs_out_of_reach_are_refused():
    weights = torch.ones(5) / 10
    cost = lambda logits: 0.5 + linear_cost(weights)(logits)  # noqa: E731
    logits = torch.zeros(5)
    slopes = cost_slopes(cost, logits)
    for target in (0.4, 1.2):
        with pytest.raises(InputError, match="can be brought to"):
            retarget(logits, slopes, cost, target)
