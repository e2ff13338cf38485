"""Bernoulli gates: relaxed and hard samples, and the arithmetic of their logits.

Everything works on *keep logits*: pi = sigmoid(logit) is the probability that a gate is open (z = 1). The paper
and its code speak of the drop rate p = 1 - pi; `drop_to_keep` is the only place that converts one to the other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pgnas.errors import InputError


def drop_to_keep(drop: float) -> float:
    """Keep probability pi = 1 - p of the paper's drop rate p.

    Raises:
        InputError: If ``drop`` is not in (0, 1), or so small that 1 - p rounds to 1.
    """
    keep = 1.0 - drop
    if not (0.0 < drop < 1.0 and keep < 1.0):
        raise InputError("drop rate", "must be in (0, 1)", value=drop, remedy="choose a rate such as 0.1")
    return keep


def logit(keep: float) -> float:
    """Logit log(pi / (1 - pi)) of a keep probability.

    Raises:
        InputError: If ``keep`` is not in (0, 1): a gate that is certain has no finite logit.
    """
    if not 0.0 < keep < 1.0:
        raise InputError(
            "keep probability",
            "must be in (0, 1)",
            value=keep,
            remedy="use an ungated channel for 1, remove the channel for 0",
        )
    return math.log(keep) - math.log1p(-keep)


def logistic_noise(uniform: Tensor) -> Tensor:
    """Standard logistic noise log u - log(1 - u), of the shape and dtype of ``uniform``.

    Args:
        uniform: Draws from U[0, 1), any shape, floating point. The ends are moved inwards by half of a
            generator step, because float32 `torch.rand` returns exactly 0 once in 2^24 draws.
    """
    eps = torch.finfo(uniform.dtype).eps
    inside = uniform.clamp(eps / 4, 1.0 - eps / 2)
    return inside.log() - torch.log1p(-inside)


def rsample(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Relaxed Bernoulli sample z = sigmoid((logit(pi) + log u - log(1 - u)) / tau), Eq. 16 of the paper.

    For every temperature P(z > 1/2) = pi; as tau -> 0 the sample becomes Bernoulli(pi).

    Args:
        logits: Keep logits, shape (K,) or anything that broadcasts with ``uniform``.
        uniform: Draws from U[0, 1), shape (..., K).
        temperature: tau > 0, without unit (0.2 in the paper).

    Returns:
        Values in [0, 1], shape (..., K), differentiable in ``logits``.

    Raises:
        InputError: If ``temperature`` is not positive.
    """
    if not temperature > 0.0:
        raise InputError("temperature", "must be > 0", value=temperature, remedy="use sample() for hard gates")
    return torch.sigmoid((logits + logistic_noise(uniform)) / temperature)


@torch.no_grad()
def sample(logits: Tensor, *, generator: torch.Generator | None = None, shape: tuple[int, ...] = ()) -> Tensor:
    """Hard Bernoulli(sigmoid(logits)) samples.

    Args:
        logits: Keep logits, shape (K,) (any shape works).
        generator: Source of randomness. It may live on another device than ``logits``: a CPU generator gives the
            same samples on every machine.
        shape: Leading sample shape.

    Returns:
        Bool tensor, shape ``shape + logits.shape``, on the device of ``logits``; True keeps.
    """
    if generator is not None:
        device = generator.device
    else:
        device = torch.device("cpu") if logits.device.type == "mps" else logits.device  # MPS has no float64
    # float64: the 2^-24 steps of float32 would never drop a gate of keep probability 1 - 1e-9.
    keep = torch.sigmoid(logits.detach().to(device).double())
    uniform = torch.rand((*shape, *logits.shape), generator=generator, dtype=torch.float64, device=device)
    return (uniform < keep).to(logits.device)


def product_logits(a: Tensor, b: Tensor) -> Tensor:
    """Logit of sigmoid(a) * sigmoid(b): a channel that lives if two independent gates are open.

    From (1 - P) / P = e^-a + e^-b + e^(-a-b), so it is stable at both ends.

    Args:
        a: Logits, any shape.
        b: Logits, broadcast against ``a``.
    """
    return -torch.logaddexp(torch.logaddexp(-a, -b), -a - b)


def entropy(logits: Tensor) -> Tensor:
    """Binary entropy H(pi) in nats, elementwise, of the shape of ``logits``."""
    # H is even. With x = |a|: H = -log sigmoid(x) + x sigmoid(-x); sigmoid(-x) keeps its digits, 1 - sigmoid(x) does
    # not. x is sign * a rather than abs(a), whose derivative vanishes at 0.
    x = toward_certain(logits) * logits
    return -logsigmoid(x) + x * torch.sigmoid(-x)


def toward_certain(logits: Tensor) -> Tensor:
    """The constant +1 where a logit is >= 0, else -1: by the symmetry z -> 1 - z it makes every logit >= 0."""
    one = torch.ones_like(logits)
    return torch.where(logits >= 0, one, -one)
