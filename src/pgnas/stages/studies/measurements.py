"""What a study measures, row by row and seed by seed, and how it is summed up over the seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Measurement:
    """What one seed gave for one row of a study's table.

    Attributes:
        row: The row's title.
        seed: The seed.
        values: Numbers by the name of their column.
        accuracies: Validation accuracy of every sampled candidate, in the order in which they were drawn.
    """

    row: str
    seed: int
    values: Mapping[str, float]
    accuracies: tuple[float, ...] = ()


@dataclass(frozen=True)
class Spread:
    """Some values, summed up.

    Attributes:
        mean: Their mean.
        deviation: Their sample standard deviation; ``None`` for one value.
        count: How many they are.
    """

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The spread of one value or more."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))

    @property
    def error(self) -> float | None:
        """The standard error of the mean."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.count)


def rows_of(measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """The measurements of each row, in the order in which the rows came first."""
    rows: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        rows.setdefault(measurement.row, []).append(measurement)
    return rows


def spread_of(measurements: Sequence[Measurement], column: str) -> Spread | None:
    """The spread of a column over one row's measurements; ``None`` if they have no such value."""
    values = [m.values[column] for m in measurements if column in m.values]
    return Spread.of(values) if values else None


def difference(measurements: Sequence[Measurement], row: str, other: str, column: str) -> Spread | None:
    """``row`` minus ``other``, seed by seed; ``None`` without a seed that has both."""
    by_row = {title: {m.seed: m.values for m in found} for title, found in rows_of(measurements).items()}
    ours, theirs = by_row.get(row, {}), by_row.get(other, {})
    seeds = [seed for seed in ours if seed in theirs and column in ours[seed] and column in theirs[seed]]
    return Spread.of([ours[seed][column] - theirs[seed][column] for seed in seeds]) if seeds else None


def verdict(subject: str, spread: Spread | None) -> str:
    """A difference of accuracies in one line, with its standard error over seeds.

    Args:
        subject: What was subtracted from what.
        spread: The difference, as a share.
    """
    if spread is None:
        return f"{subject}: no seed has both"
    text = f"{subject}: {100 * spread.mean:+.2f} points"
    if spread.error is None:
        return f"{text} (one seed: no standard error)"
    seeds = f"standard error {100 * spread.error:.2f} over {spread.count} seeds"
    times = f", {spread.mean / spread.error:.1f} times that" if spread.error else ""
    return f"{text} ({seeds}{times})"
