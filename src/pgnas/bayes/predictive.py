"""The posterior predictive distribution: its average, what its entropy is made of, proper scores and calibration.

Shapes: M sampled networks, N images, K classes. Entropies are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

BINS = 15
"""Of the confidence, equally wide (Guo et al., 2017)."""
LOG_TEMPERATURE_SD = 0.5
"""Standard deviation of the normal prior on the logarithm of a calibration temperature."""
_HALVINGS = 40


class Uncertainty(NamedTuple):
    """The entropy of a predictive distribution and its two parts (Depeweg et al., 2018), each (N,).

    Attributes:
        total: H[E p], the entropy of the averaged distribution.
        aleatoric: E H[p], the entropy that remains if the network is known.
        epistemic: total - aleatoric >= 0, the mutual information of the class and the network.
    """

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


class Predictive:
    """The average over sampled networks, gathered one network at a time.

    Attributes:
        weight: Sum of the weights so far.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self._log_probs: Tensor | None = None
        self._entropy: Tensor | None = None

    def add(self, log_probs: Tensor, *, weight: float = 1.0) -> None:
        """Count one more network.

        Args:
            log_probs: (N, K), normalised.
            weight: How often it was drawn.
        """
        new, spread = log_probs.double() + math.log(weight), weight * entropy(log_probs.double())
        self._log_probs = new if self._log_probs is None else torch.logaddexp(self._log_probs, new)
        self._entropy = spread if self._entropy is None else self._entropy + spread
        self.weight += weight

    def log_probs(self) -> Tensor:
        """The logarithm of E[p], (N, K) float64."""
        assert self._log_probs is not None, "no network was added"
        return self._log_probs - math.log(self.weight)

    def uncertainty(self) -> Uncertainty:
        """What the entropy is made of."""
        assert self._entropy is not None, "no network was added"
        total, aleatoric = entropy(self.log_probs()), self._entropy / self.weight
        return Uncertainty(total, torch.minimum(aleatoric, total), (total - aleatoric).clamp_min(0))


def entropy(log_probs: Tensor) -> Tensor:
    """H[p] of each row, (N, K) to (N,); 0 log 0 = 0."""
    probs = log_probs.exp()
    total: Tensor = torch.special.xlogy(probs, probs).sum(-1)
    return -total


def brier(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Brier's score of each image, sum over classes of (p_k - [k = label])^2, in [0, 2] (Brier, 1950).

    Args:
        log_probs: (N, K).
        labels: (N,).
    """
    probs = log_probs.exp()
    picked = probs.gather(1, labels[:, None])[:, 0]
    return probs.square().sum(1) - 2 * picked + 1


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies in [low, high); the last bin also holds those of confidence 1.

    Attributes:
        low: From.
        high: To.
        count: How many images.
        confidence: Their mean; None in an empty bin.
        accuracy: Share of them that are right; None in an empty bin.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def bin_of(confidence: Tensor, bins: int = BINS) -> Tensor:
    """The bin of each confidence in [0, 1], (N,) int64 in 0..bins - 1."""
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype)
    return (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, bins - 1)


def reliability(confidence: Tensor, correct: Tensor, bins: int = BINS) -> list[Bin]:
    """The bins of a reliability diagram.

    Args:
        confidence: (N,), the probability of the predicted class.
        correct: (N,), whether the prediction is right.
        bins: How many.
    """
    return list(_bins(confidence.double(), correct.double(), bin_of(confidence, bins), bins))


def _bins(confidence: Tensor, correct: Tensor, place: Tensor, bins: int) -> Iterator[Bin]:
    for number in range(bins):
        here = place == number
        count = int(here.sum())
        means = (float(confidence[here].mean()), float(correct[here].mean())) if count else (None, None)
        yield Bin(number / bins, (number + 1) / bins, count, *means)


def fit_temperature(log_probs: Tensor, labels: Tensor) -> float:
    """The temperature T whose softmax(log p / T) fits held-out labels best (Guo et al., 2017), a posterior mode.

    log T has a normal prior of mean 0 and standard deviation ``LOG_TEMPERATURE_SD``: a few hundred images outweigh it,
    and where a small held-out set is classified without an error, which alone would make T zero, it keeps T sane.

    Args:
        log_probs: (N, K), normalised or not.
        labels: (N,).
    """
    scores = log_probs.double()

    def slope(log_t: float) -> float:
        with torch.enable_grad():
            at = torch.tensor(log_t, dtype=torch.float64, requires_grad=True)
            nll = -torch.log_softmax(scores / at.exp(), 1).gather(1, labels[:, None]).sum()
            (found,) = torch.autograd.grad(nll + at.square() / (2 * LOG_TEMPERATURE_SD**2), at)
        return float(found)

    low, high = -8 * LOG_TEMPERATURE_SD, 8 * LOG_TEMPERATURE_SD
    for _ in range(_HALVINGS):  # the slope falls through zero from both sides: no step size to choose
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return math.exp((low + high) / 2)


def tempered(log_probs: Tensor, temperature: float) -> Tensor:
    """The logarithm of softmax(log p / T), (N, K)."""
    return torch.log_softmax(log_probs / temperature, -1)
