"""Scores of predicted probabilities, with intervals: accuracy, NLL, Brier's score, calibration, other data told apart.

Shapes: N images, K classes.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pgnas.bayes import Interval, bootstrap_calibration, bootstrap_mean, brier, reliability, wilson
from pgnas.bayes.predictive import BINS, bin_of
from pgnas.seeds import derive_seed

Facts = dict[str, Any]
RESAMPLES = 1000


def point_scores(log_probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, NLL in nats, Brier's score and expected calibration error (L1, 15 equally wide bins)."""
    from torchmetrics.functional.classification import multiclass_calibration_error  # here, as it takes a second

    error = multiclass_calibration_error(
        log_probs.exp(), labels, num_classes=log_probs.shape[1], n_bins=BINS, norm="l1"
    )
    return {
        "accuracy": float((log_probs.argmax(1) == labels).double().mean()),
        "nll": float(F.nll_loss(log_probs, labels)),
        "brier": float(brier(log_probs, labels).mean()),
        "ece": float(error),
    }


def scores(log_probs: Tensor, labels: Tensor, *, seed: int) -> Facts:
    """:func:`point_scores`, each with the ends of its 95 % interval, as JSON.

    The accuracy's interval is Wilson's, which does not collapse where every image is right; the others are bootstrap
    intervals over the images.

    Args:
        log_probs: (N, K), normalised.
        labels: (N,).
        seed: Of the run; draws the resamples.
    """
    correct = log_probs.argmax(1) == labels
    confidence = log_probs.exp().amax(1)
    generator = torch.Generator().manual_seed(derive_seed(seed, "bootstrap"))
    losses = F.nll_loss(log_probs, labels, reduction="none")
    intervals: dict[str, Interval] = {
        "accuracy": wilson(int(correct.sum()), len(labels)),
        "nll": bootstrap_mean(losses, generator=generator, count=RESAMPLES),
        "brier": bootstrap_mean(brier(log_probs, labels), generator=generator, count=RESAMPLES),
        "ece": bootstrap_calibration(
            correct.double() - confidence, bin_of(confidence), generator=generator, count=RESAMPLES
        ),
    }
    values = point_scores(log_probs, labels)
    return {name: {"value": value, **intervals[name]._asdict()} for name, value in values.items()}


def reliability_bins(log_probs: Tensor, labels: Tensor) -> list[Facts]:
    """The bins of a reliability diagram, as JSON."""
    confidence, predicted = log_probs.exp().max(1)
    return [asdict(found) for found in reliability(confidence, predicted == labels)]


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that a score, such as an entropy, is higher for an image of other data than for a test image.

    Args:
        inside: Scores >= 0 of test images, (N,).
        outside: Scores of images of other data, (M,).
    """
    from torchmetrics.functional.classification import binary_auroc

    together = torch.cat([inside, outside]).double()
    truth = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).long()
    # Scaled into [0, 1]: torchmetrics takes other scores for logits, and rounds small differences away.
    return float(binary_auroc(together / together.max().clamp_min(1e-300), truth))
