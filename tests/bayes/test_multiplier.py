"""The controller reaches a cap, holds it, and finds the multiplier that the optimum has."""

import json
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgnas.bayes import CapController, entropy, ramp
from pgnas.errors import InputError


def solve(cap: float, gain: torch.Tensor, steps: int = 1500) -> tuple[list[float], CapController, torch.Tensor]:
    """Minimise -gain . pi - 0.05 * H under mean(pi) <= cap."""
    logits = torch.full_like(gain, 3.0).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    controller, costs = CapController(step=0.1, damping=10.0), []
    for step in range(steps):
        cost = torch.sigmoid(logits).mean()
        loss = -(gain * torch.sigmoid(logits)).sum() - 0.05 * entropy(logits).sum() + controller.penalty(cost)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        costs.append(cost.item())
        controller = controller.update(cost.item(), ramp(step / (0.4 * steps), 1.0, cap))
    return costs, controller, logits.detach()


def test_the_controller_reaches_and_holds_a_cap() -> None:
    gain = torch.linspace(0.01, 0.3, 20)
    costs, controller, logits = solve(0.4, gain)
    assert costs[0] > 0.9
    assert all(abs(cost - 0.4) < 0.01 for cost in costs[-300:])
    # At the optimum gain_k - lambda / K = 0.05 * d(-H)/dpi = 0.05 * logit_k.
    assert torch.allclose(gain - controller.multiplier / 20, 0.05 * logits, atol=0.01)


def test_a_slack_cap_costs_nothing() -> None:
    gain = torch.linspace(-0.3, -0.1, 20)
    costs, controller, _ = solve(0.4, gain, steps=600)
    assert costs[-1] < 0.1
    assert controller.multiplier == 0.0
    assert controller.penalty(torch.tensor(0.1)).item() == 0.0


@given(st.floats(0, 5), st.floats(0, 20), st.floats(0.01, 1), st.floats(0, 1))
def test_the_slope_of_the_penalty_is_the_damped_multiplier(lam: float, rho: float, target: float, at: float) -> None:
    controller = CapController(multiplier=lam, target=target, damping=rho)
    cost = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    controller.penalty(cost).backward()
    assert cost.grad is not None
    assert cost.grad.item() == pytest.approx(max(0.0, lam + rho * (at - target)), abs=1e-9)


def test_the_state_survives_json_and_updates_leave_it_alone() -> None:
    controller = CapController(step=0.5)
    later = controller.update(0.9, 0.5)
    assert controller == CapController(step=0.5)
    assert later.multiplier == pytest.approx(0.2)
    assert later.target == 0.5
    assert CapController.from_dict(json.loads(json.dumps(later.to_dict()))) == later
    assert later.update(0.0, 0.5).multiplier == 0.0
    with pytest.raises(InputError, match="must have the keys"):
        CapController.from_dict({"multiplier": 1.0})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_a_broken_cost_is_not_swallowed(bad: float) -> None:
    with pytest.raises(InputError):
        CapController().update(bad, 0.5)
    with pytest.raises(InputError):
        CapController(target=bad)


@pytest.mark.parametrize("shape", ["geometric", "linear"])
def test_the_ramp_falls_from_start_to_cap_and_stays(shape: str) -> None:
    values = [ramp(i / 10, 1.0, 0.4, shape=shape) for i in range(-2, 15)]  # type: ignore[arg-type]
    assert values[:3] == [1.0, 1.0, 1.0]
    assert values[12:] == pytest.approx([0.4] * 5)
    assert values[2:13] == sorted(values[2:13], reverse=True)
    steps = [b / a if shape == "geometric" else b - a for a, b in pairwise(values[2:13])]
    assert steps == pytest.approx([steps[0]] * 10)


def test_the_ramp_refuses_nonsense() -> None:
    with pytest.raises(InputError, match="ramp cap"):
        ramp(0.5, 1.0, 0.0)
    with pytest.raises(InputError, match="ramp shape"):
        ramp(0.5, 1.0, 0.4, shape="cubic")  # type: ignore[arg-type]
