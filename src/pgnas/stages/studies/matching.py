"""A fixed drop rate whose random networks are as large, in the mean, as those of a posterior."""

from __future__ import annotations

import torch
from torch import Tensor

from pgnas.nn import Supernet
from pgnas.nn.cost import count_plan
from pgnas.seeds import derive_seed

SAMPLES = 32
"""Architectures that stand for a posterior."""
STEPS = 12
"""Halvings of the interval of rates: to 2^-12."""


def matched_drop(supernet: Supernet, *, seed: int) -> tuple[float, float]:
    """The drop rate at which architectures have as many parameters as the posterior's, and how many these have.

    Both are means over the extracted networks of ``SAMPLES`` architectures, decided by uniform draws that are spread
    evenly for every unit (a Latin hypercube). The same draws decide about every rate, so that the mean grows with the
    keep probability and halving finds where it crosses.

    Args:
        supernet: The posterior.
        seed: Of the draws.

    Returns:
        The drop rate in [0, 1), and the mean number of parameters under the posterior.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "expected size"))
    uniform, order = torch.rand(2, SAMPLES, supernet.gates.units, generator=generator, dtype=torch.float64)
    uniform = (order.argsort(0) + uniform) / SAMPLES
    posterior = torch.sigmoid(supernet.gates.logits().detach().cpu().double())
    wanted = mean_params(supernet, uniform < posterior)
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        keep = (low + high) / 2
        low, high = (keep, high) if mean_params(supernet, uniform < keep) < wanted else (low, keep)
    return round(1 - high, 6), wanted


def mean_params(supernet: Supernet, kept: Tensor) -> float:
    """Mean parameters of the extracted networks that keep these units, bool (samples, U)."""
    counts = [count_plan(supernet.graph, supernet.plan_units(row)).params for row in kept]
    return sum(counts) / len(counts)
