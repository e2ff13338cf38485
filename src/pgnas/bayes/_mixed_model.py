"""What arms that are alike tell of each other: a mixed model of their scores.

An arm's score over all images is s_i = mu + z_i b + u_i: z_i (F,) its features, b ~ N(0, additive I) what each
is worth, u_i ~ N(0, own) what is the arm's alone. On some images it is seen with noise of variance v_i. The best linear
unbiased prediction of s_i (Henderson, Biometrics 1975) takes b from all arms together, so that an arm of which little
has been seen is judged by those that share its features. Arms that see the same images share these images' chance,
too, so arms of different groups must see different ones: only products across groups tell the two apart (Haseman &
Elston, Behavior Genetics 1972, on pairs that share nothing but what is inherited).
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_FEATURES = 1024
"""More are replaced by so many random mixtures of them, which keep inner products to a few percent."""

ROWS = 256
"""Arms whose features are mixed at a time: there may be as many units as gigabytes hold, a byte each."""


def standardized(features: Tensor) -> Tensor:
    """Features (C, F) around their means, on a scale on which the mean of |z_i|^2 is 1; (C, F'), float64.

    Those that are the same for all arms are left out.
    """
    varying = features[:, (features != features[:1]).any(0)] if len(features) else features
    if varying.shape[1] > MOST_FEATURES:
        generator = torch.Generator().manual_seed(0)
        mixing = torch.randn(varying.shape[1], MOST_FEATURES, generator=generator, dtype=torch.float64)
        varying = torch.cat([rows.double() @ mixing for rows in torch.split(varying, ROWS)])
    centered = varying.double() - varying.double().mean(0)
    scale = centered.square().sum(1).mean().sqrt()
    return centered / scale if centered.numel() else centered


def additive_variance(features: Tensor, values: Tensor, groups: Tensor) -> float:
    """Variance of z b, by regressing products of two arms' values on those of their features, across groups.

    Args:
        features: As of `standardized`, (C, F).
        values: Seen scores around their mean, (C,); noise of different groups is independent.
        groups: Of each arm, (C,), int64.

    Returns:
        The slope of y_i y_j on z_i . z_j over pairs of different groups; 0 if there are none or it is negative.
    """
    explained = (features.T @ values).square().sum()
    alike = (features.T @ features).square().sum()
    for group in range(int(groups.max()) + 1):
        rows = groups == group
        mine = features[rows]
        explained = explained - (mine.T @ values[rows]).square().sum()
        alike = alike - (mine @ mine.T).square().sum()
    return max(0.0, float(explained / alike)) if float(alike) > 0 else 0.0


def predicted(features: Tensor, values: Tensor, noise: Tensor, *, additive: float, own: float) -> Tensor:
    """Best linear unbiased prediction of the scores around their mean.

    Args:
        features: As of `standardized`, (C, F).
        values: Seen scores around their mean, (C,).
        noise: Their variances, (C,), >= 0.
        additive: Variance of z b, >= 0.
        own: Variance of u, > 0.

    Returns:
        (C,), float64.
    """
    arms, count = features.shape
    shared = torch.zeros(arms, dtype=torch.float64)
    precision = 1 / (own + noise)
    if additive > 0 and 0 < count < arms:
        system = features.T @ (features * precision[:, None]) + torch.eye(count, dtype=torch.float64) / additive
        shared = features @ torch.linalg.solve(system, features.T @ (precision * values))
    elif additive > 0 and count:
        covariance = additive * features @ features.T
        shared = covariance @ torch.linalg.solve(covariance + torch.diag(own + noise), values)
    return shared + own * precision * (values - shared)
