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


def expected_scores(pilot: Tensor) -> Tensor:
    """What an arm is expected to score on each image, (N,), float64, from the scores (P, N) of some arms."""
    return (pilot.double().sum(0) + 0.5) / (len(pilot) + 1)


def image_weights(pilot: Tensor, floor: float = WEIGHT_FLOOR) -> Tensor:
    """How well each image tells arms apart: the spread of its score over arms, between ``floor`` and 1.

    Images that every arm gets right, or wrong, cost passes and decide nothing. Drawing images in proportion to the
    standard deviation of what they contribute is Neyman's allocation.

    Args:
        pilot: Scores (P, N) in [0, 1] of some arms on all images.
        floor: The least, in units of the largest.

    Returns:
        Weights (N,), float64.
    """
    mean = expected_scores(pilot)
    spread = (mean * (1 - mean)).sqrt()
    return floor + (1 - floor) * spread / spread.max()


def inclusion(weights: Tensor, count: int) -> Tensor:
    """Probability (N,) that each image is among the first ``count`` of `image_order`.

    An image has been drawn by time T with probability 1 - exp(-w T); T is where these add up to ``count``, which is the
    time of the draw to within its own chance, of order 1 / sqrt(count).
    """
    low, high = 0.0, 50.0 * len(weights) / float(weights.min())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float(-torch.expm1(-weights * middle).sum()) < count else (low, middle)
    return -torch.expm1(-weights * high)
