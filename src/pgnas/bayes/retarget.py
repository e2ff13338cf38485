"""Re-target a posterior to another cost: the stationarity condition of the ELBO with a Gibbs prior, solved for logits.

With keep probabilities pi the ELBO's loss is E[nll](pi) - H(pi) / N + lambda * E[cost](pi). Its derivative by pi_k is

    d E[nll] / d pi_k + logit(pi_k) / N + lambda * d E[cost] / d pi_k,

and 0 where the posterior is learned. So for another lambda each logit moves by -(delta lambda) * N * d E[cost] / d pi.
That is exact if neither derivative changes on the way; the weights were learned at one lambda, in any case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pgnas.errors import InputError

_CERTAIN = 12.0
"""Slopes are taken with logits within this bound, where pi (1 - pi) is not lost to rounding."""
_HALVINGS = 60
_FAR = 1e9
"""Units of shift beyond which nothing changes any more."""
_SHORT = 1e-3
"""Share by which a cost that only open gates reach is missed."""

Cost = Callable[[Tensor], Tensor]
"""E_q[cost] as a function of the keep logits (U,): a scalar, in units of the full network's cost."""


def cost_slopes(cost: Cost, logits: Tensor) -> Tensor:
    """D E_q[cost] / d pi of every unit, (U,) float64: what an open unit costs more than a closed one in the mean.

    Args:
        cost: The expected cost.
        logits: Keep logits, (U,).
    """
    inside = logits.detach().double().clamp(-_CERTAIN, _CERTAIN).requires_grad_()
    with torch.enable_grad():
        (by_logit,) = torch.autograd.grad(cost(inside), inside)
    return by_logit / (torch.sigmoid(inside) * torch.sigmoid(-inside)).detach()


@dataclass(frozen=True)
class Retargeted:
    """A posterior at another cost.

    Attributes:
        logits: Its keep logits, (U,).
        shift: (delta lambda) * N, in nats a unit of cost: below 0 where the new cost is higher.
        cost: Its expected cost.
    """

    logits: Tensor = field(repr=False)
    shift: float
    cost: float


@torch.no_grad()
def retarget(logits: Tensor, slopes: Tensor, cost: Cost, target: float) -> Retargeted:
    """Shift every logit by -(delta lambda) * N * slope, with the delta that makes the expected cost meet a target.

    Args:
        logits: Keep logits, (U,).
        slopes: Those of :func:`cost_slopes`, >= 0, (U,); units with slope 0 stay.
        cost: The expected cost.
        target: What it shall be.

    What everything open costs is met but for a thousandth of what gates decide about, since there the logits would
    have no end.

    Raises:
        InputError: No shift meets the target: what cannot be closed costs more, or everything open costs less.
    """
    slopes = slopes.to(logits)

    def at(shift: float) -> float:
        return float(cost(logits - shift * slopes))

    unit = 1.0 / max(float(slopes.max()), 1e-12)
    least, most = at(_FAR * unit), at(-_FAR * unit)
    end = most - _SHORT * (most - least)
    aim = min(target, end) if target <= most * (1 + 1e-6) else target
    low, high = _bracket(at, aim, unit)
    for _ in range(_HALVINGS):  # cost falls with the shift
        middle = 0.5 * (low + high)
        low, high = (low, middle) if at(middle) <= aim else (middle, high)
    return Retargeted(logits - high * slopes, high, at(high))


def _bracket(at: Callable[[float], float], target: float, unit: float) -> tuple[float, float]:
    """A shift whose cost is above the target, and a larger one whose cost is not."""
    low, high = -unit, unit
    for _ in range(_HALVINGS):
        too_cheap, too_dear = at(low) <= target, at(high) > target
        if not too_cheap and not too_dear:
            return low, high
        low, high = (2 * low if too_cheap else low), (2 * high if too_dear else high)
        if max(-low, high) > _FAR * unit:
            break
    reached = at(high) if at(high) > target else at(low)
    raise InputError(
        "expected cost", f"can be brought to {reached:.3g} of the full network's", value=f"a target of {target:.3g}",
        remedy="choose a cost that the gates can reach",
    )  # fmt: skip
