"""The multiplier that holds the expected cost under a cap: a damped (augmented) Lagrangian.

Given before the data, lambda is a parameter of the Gibbs prior. Set by a cap, as here, it is a Lagrange multiplier
instead: its value is found from the data, and the posterior is the best one among those that meet the cap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from pgnas.errors import InputError


@dataclass(frozen=True)
class CapController:
    """State of the constraint E_q[cost] <= target; every update returns a new controller.

    The multiplier is a Lagrange multiplier, not a prior fixed before the data. It has the unit of lambda in
    `gibbs_kl` (nats per example and unit of cost), so `penalty` is added to a loss that is divided by N already.

    Attributes:
        multiplier: lambda >= 0.
        target: The cap now in force, in units of the full network's cost.
        step: Dual step size: lambda changes by step * (cost - target) at each update.
        damping: rho >= 0, the quadratic term. Plain dual ascent (0) overshoots once gates saturate.
    """

    multiplier: float = 0.0
    target: float = 1.0
    step: float = 0.1
    damping: float = 10.0

    def __post_init__(self) -> None:
        for name in ("multiplier", "target", "step", "damping"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise InputError(
                    f"CapController.{name}", "must be finite and >= 0", value=value, remedy="give one >= 0"
                )

    def penalty(self, cost: Tensor) -> Tensor:
        """Augmented Lagrangian of the cap: lambda * g + rho / 2 * g^2 with g = max(cost - target, -lambda / rho).

        Its slope in the cost is max(0, lambda + rho * (cost - target)): more than lambda above the target, less
        below it, and never a reward for cost.

        Args:
            cost: E_q[cost], scalar, in units of the full network's cost.

        Returns:
            Scalar, nats per example.
        """
        excess = cost - self.target
        if self.damping > 0.0:
            excess = torch.clamp(excess, min=-self.multiplier / self.damping)
        return self.multiplier * excess + 0.5 * self.damping * excess.square()

    def update(self, cost: float, target: float) -> CapController:
        """One dual step, lambda <- max(0, lambda + step * (cost - target)), with ``target`` in force from now on.

        Args:
            cost: E_q[cost] measured now, in units of the full network's cost.
            target: The cap from now on (see `ramp`).

        Raises:
            InputError: If ``cost`` or ``target`` is not finite and >= 0.
        """
        if not 0.0 <= cost < math.inf:
            raise InputError("expected cost", "must be finite and >= 0", value=cost, remedy="check the gate logits")
        return replace(self, multiplier=max(0.0, self.multiplier + self.step * (cost - target)), target=target)

    def to_dict(self) -> dict[str, float]:
        """The whole state as floats; `from_dict` restores it."""
        return {key: float(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, state: Mapping[str, float]) -> CapController:
        """The controller that `to_dict` described.

        Raises:
            InputError: If ``state`` has other keys than the fields.
        """
        expected = {field.name for field in fields(cls)}
        if set(state) != expected:
            raise InputError(
                "CapController state",
                f"must have the keys {sorted(expected)}",
                value=sorted(state),
                remedy="pass what to_dict() returned",
            )
        return cls(**{key: float(value) for key, value in state.items()})


def ramp(progress: float, start: float, cap: float, *, shape: Literal["geometric", "linear"] = "geometric") -> float:
    """Target on the way from ``start`` (usually 1, the full network) down to ``cap``.

    Args:
        progress: Fraction of the ramp that is done; clamped to [0, 1], so it stays at the cap afterwards.
        start: Target at progress 0, > 0, in units of the full network's cost.
        cap: Target at progress 1, > 0, in the same units.
        shape: ``"geometric"`` removes the same share at every step, ``"linear"`` the same amount.

    Raises:
        InputError: If an end is not positive, or ``shape`` is unknown.
    """
    for name, value in (("start", start), ("cap", cap)):
        if not 0.0 < value < math.inf:
            raise InputError(f"ramp {name}", "must be > 0", value=value, remedy="give a fraction of the full cost")
    done = min(max(progress, 0.0), 1.0)
    if shape == "geometric":
        return float(start ** (1.0 - done) * cap**done)
    if shape == "linear":
        return start * (1.0 - done) + cap * done
    raise InputError("ramp shape", "must be 'geometric' or 'linear'", value=repr(shape), remedy="choose one of them")
