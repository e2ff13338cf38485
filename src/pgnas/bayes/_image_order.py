"""The random order of the held-out images: those that tell arms apart sooner."""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHT_FLOOR = 0.1
"""Least sampling weight of an image, in units of the largest."""


def exponential_clocks(images: int, generator: torch.Generator) -> Tensor:
    """One standard exponential variable for each image, shape (N,), float64."""
    return -torch.log1p(-torch.rand(images, generator=generator, dtype=torch.float64))


def image_order(clocks: Tensor, weights: Tensor) -> Tensor:
    """The images (N,) in the order in which their exponential clocks (N,) of rate ``weights`` (N,) ring.

    This is sampling without replacement, the next image being j with probability weight_j / (sum over the images left).
    """
    return torch.argsort(clocks / weights, stable=True)


def image_weights(pilot: Tensor) -> Tensor:
    """How well each image tells arms apart: the spread of its score over arms, between `WEIGHT_FLOOR` and 1.

    Images that every arm gets right, or wrong, cost passes and decide nothing. Drawing images in proportion to the
    standard deviation of what they contribute is Neyman's allocation.

    Args:
        pilot: Scores (P, N) in [0, 1] of some arms on all images.

    Returns:
        Weights (N,), float64.
    """
    mean = (pilot.double().sum(0) + 0.5) / (len(pilot) + 1)
    spread = (mean * (1 - mean)).sqrt()
    return WEIGHT_FLOOR + (1 - WEIGHT_FLOOR) * spread / spread.max()
