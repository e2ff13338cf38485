"""What an optimiser of weights remembers of each parameter, so that it can be cut and handed on with the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pgnas.config import OptimizerName
from pgnas.stages.engine import parameter_groups
from pgnas.stages.schedule import Schedule

Moments = Mapping[str, Mapping[str, Tensor]]
"""By the optimiser's name of it and the parameter's name; like the parameter, but for the number of its steps."""
_MOMENTUM, _STEP = "momentum_buffer", "step"
_LIKE_PARAMETER = (_MOMENTUM, "exp_avg", "exp_avg_sq")
_BETA_2 = 0.999


def make_optimizer(
    name: OptimizerName, parameters: list[nn.Parameter], schedule: Schedule, weight_decay: float, momentum: float
) -> torch.optim.Optimizer:
    """The optimiser of weights.

    Args:
        name: SGD with Nesterov momentum, or AdamW (Loshchilov & Hutter, ICLR 2019).
        parameters: The weights; matrices and kernels decay.
        schedule: Gives the learning rate.
        weight_decay: L2 decay, or with AdamW the decoupled one.
        momentum: Nesterov momentum, or the first beta.
    """
    groups = parameter_groups(parameters, weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=schedule.peak, betas=(momentum, _BETA_2))
    return torch.optim.SGD(groups, lr=schedule.peak, momentum=momentum, nesterov=momentum > 0)


def moments_of(optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """The moments of parameters by name; parameters that were never stepped have none."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, parameter in named.items():
        state = optimizer.state.get(parameter, {})
        for slot in (*_LIKE_PARAMETER, _STEP):
            if state.get(slot) is not None:
                found.setdefault(slot, {})[name] = state[slot].detach().clone()
    return found


def no_moments(optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The moments of tensors that an optimiser of this type has not stepped yet: 0."""
    if isinstance(optimizer, torch.optim.SGD):
        return {_MOMENTUM: {name: torch.zeros_like(value) for name, value in named.items()}}
    found = {slot: {name: torch.zeros_like(value) for name, value in named.items()} for slot in _LIKE_PARAMETER[1:]}
    return found | {_STEP: {name: torch.zeros(()) for name in named}}


def set_moments(optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], moments: Moments) -> None:
    """Set the moments of parameters by name; those that ``moments`` do not know keep theirs."""
    for slot in (*_LIKE_PARAMETER, _STEP):  # in one order, in whichever a file's tensors came: states are compared
        values = moments.get(slot, {})
        for name, parameter in named.items():
            if name in values:
                value = values[name]
                optimizer.state[parameter][slot] = value.clone() if slot == _STEP else value.to(parameter)


def each_moment(moments: Moments, change: Callable[[str, Tensor], Tensor]) -> dict[str, dict[str, Tensor]]:
    """The moments with those like their parameter changed; ``change`` is called with the parameter's name."""
    return {
        slot: {name: value if slot == _STEP else change(name, value) for name, value in values.items()}
        for slot, values in moments.items()
    }


def renamed(moments: Moments, names: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    """The moments of parameters under other names.

    Args:
        moments: The moments.
        names: New names to the old.
    """
    return {slot: {new: values[old] for new, old in names.items() if old in values} for slot, values in moments.items()}


def to_tensors(moments: Moments) -> dict[str, Tensor]:
    """Moments as tensors of one file; momentum is under the parameter's own name."""
    return {
        name if slot == _MOMENTUM else f"{slot}:{name}": value
        for slot, values in moments.items()
        for name, value in values.items()
    }


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The inverse of :func:`to_tensors`."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        slot, _, name = key.partition(":")
        if slot not in (*_LIKE_PARAMETER, _STEP):
            slot, name = _MOMENTUM, key
        found.setdefault(slot, {})[name] = value
    return found
