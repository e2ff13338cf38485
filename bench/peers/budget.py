"""Compute in epochs of the full network: multiply-adds x images of training, as ``pgnas run --budget`` counts them."""

from __future__ import annotations

from pgnas.stages.recipe import FORWARD_SHARE
from pgnas.stages.shedding import affordable

__all__ = ["FORWARD_SHARE", "affordable", "of_passes", "of_training"]


def of_training(epochs: float, *, macs: float, full_macs: float) -> float:
    """What so many epochs of a network cost.

    Args:
        epochs: Epochs of it.
        macs: Its multiply-adds an image.
        full_macs: Those of the full network.
    """
    return epochs * macs / full_macs


def of_passes(macs: float, *, full_macs: float, images: int) -> float:
    """What forward passes cost: a third of a training step, which passes backward twice as well.

    Args:
        macs: Multiply-adds of all passes together, over all their images.
        full_macs: Multiply-adds an image of the full network.
        images: Training images of an epoch.
    """
    return FORWARD_SHARE * macs / (full_macs * images)
