"""The learning rate over a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule(ABC):
    """A learning rate for every step: a linear warm-up to ``peak``, then what a subclass says.

    Attributes:
        peak: The highest learning rate.
        steps: Optimiser steps of the whole run, supernet and found network together.
        warmup: Steps of the warm-up.
    """

    peak: float
    steps: int
    warmup: int

    def at(self, step: float) -> float:
        """The learning rate of step 0, 1, ..., steps - 1; steps need not be whole."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        return self.after_warmup(step - self.warmup)

    @abstractmethod
    def after_warmup(self, step: float) -> float:
        """The learning rate ``step`` steps after the warm-up."""


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """A cosine from ``peak`` down to ``floor`` at ``steps``.

    Attributes:
        floor: The last learning rate.
    """

    floor: float = 0.0

    def after_warmup(self, step: float) -> float:
        """Half a cosine."""
        return _cosine(step / max(1, self.steps - self.warmup), self.peak, self.floor)


@dataclass(frozen=True)
class MultistepSchedule(Schedule):
    """``peak``, divided by ``divisor`` at every milestone.

    Attributes:
        milestones: Steps of the run at which the rate drops; those within the warm-up drop it when it ends.
        divisor: By how much.
    """

    milestones: tuple[float, ...] = ()
    divisor: float = 10.0

    def after_warmup(self, step: float) -> float:
        """A staircase."""
        return self.peak / self.divisor ** sum(step + self.warmup >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class WarmRestarts(Schedule):
    """SGDR (Loshchilov & Hutter 2017): cosines from ``peak`` to ``floor``, each ``growth`` times as long as the last.

    Attributes:
        first: Steps of the first cosine, T_0; need not be whole.
        growth: T_mul.
        floor: The learning rate at the end of each.
    """

    first: float = 1.0
    growth: float = 2.0
    floor: float = 0.0

    def after_warmup(self, step: float) -> float:
        """The cosine in which the step lies."""
        start, length = 0.0, self.first
        while step >= start + length:
            start, length = start + length, length * self.growth
        return _cosine((step - start) / length, self.peak, self.floor)


def _cosine(share: float, peak: float, floor: float) -> float:
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def cosine_schedule(peak: float, steps: int) -> CosineSchedule:
    """The default schedule: a twentieth of the steps is warm-up."""
    return CosineSchedule(peak, steps, max(1, steps // 20))
