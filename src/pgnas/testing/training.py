"""A gated network must train: forward in training mode, and gradients where the plain layer has them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pgnas.errors import RuleError, first_line
from pgnas.nn import Supernet

_REMEDY = "check that its forward works in training mode with torch.fx, without detaching what it reads"


def require_trainable(subject: str, gated: Supernet, own: nn.Module, x: tuple[Tensor, ...]) -> None:
    """One training step's gradients reach what they reach in the plain layer.

    Args:
        subject: What to call the rule in an error.
        gated: The supernet around the layer.
        own: The layer by itself.
        x: A batch.

    Raises:
        RuleError: The forward fails in training mode, or a gradient is missing or not finite.
    """
    plain = copy.deepcopy(own).train()
    parameters = dict(plain.named_parameters())
    inputs = [value.clone().requires_grad_() for value in x]
    wanted = _gradients(plain(*inputs), [*parameters.values(), *inputs])
    supernet = copy.deepcopy(gated).train()
    try:
        made = supernet(*x)[0]
        inside = {name: supernet.body.get_parameter(f"layer.{name}") for name in parameters}
        before = [p for name, p in supernet.body.named_parameters() if name.startswith("feeders.0.")]
        logits = list(supernet.gates.parameters())
        found = _gradients(made, [*inside.values(), *before, *logits])
    except Exception as error:
        text = first_line(error)
        raise RuleError(subject, "must train in a supernet", value=text, remedy=_REMEDY) from error
    for (name, _), expected, gradient in zip(parameters.items(), wanted, found, strict=False):
        if expected is not None and gradient is None:
            raise RuleError(subject, f"must give its parameter '{name}' a gradient", value="none", remedy=_REMEDY)
    flows = any(gradient is not None and gradient.any() for gradient in wanted[len(parameters) :])
    behind = found[len(inside) : len(inside) + len(before)]
    reached = any(gradient is not None and gradient.any() for gradient in behind)
    if flows and not reached:
        raise RuleError(subject, "must pass gradients on to what it reads", value="none", remedy=_REMEDY)
    if any(gradient is not None and not gradient.isfinite().all() for gradient in found):
        raise RuleError(subject, "must have finite gradients", value="NaN or infinity", remedy=_REMEDY)


def _gradients(made: Tensor, of: list[Tensor]) -> list[Tensor | None]:
    wanted = [tensor for tensor in of if tensor.requires_grad]
    if not wanted or not made.requires_grad:
        return [None] * len(of)
    found = iter(torch.autograd.grad(made.square().sum(), wanted, allow_unused=True))
    return [next(found) if tensor.requires_grad else None for tensor in of]
