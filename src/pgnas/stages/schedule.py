"""The learning rate over a run."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up to ``peak``, then a cosine down to 0 at ``steps``.

    Attributes:
        peak: The highest learning rate.
        steps: Optimiser steps of the whole run, supernet and found network together.
        warmup: Steps of the warm-up.
    """

    peak: float
    steps: int
    warmup: int

    def at(self, step: int) -> float:
        """The learning rate of step 0, 1, ..., steps - 1."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def cosine_schedule(peak: float, steps: int) -> CosineSchedule:
    """The default schedule: a twentieth of the steps is warm-up."""
    return CosineSchedule(peak, steps, max(1, steps // 20))
