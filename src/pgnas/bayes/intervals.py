"""How sure a share of successes is: intervals, predictions for a further sample, paired comparison, bootstrap."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pgnas.errors import InputError

LEVEL = 0.95
"""Of intervals, unless another is asked for."""
_JEFFREYS = 0.5
_AT_ONCE = 2**24  # weights of resamples in memory together


class Interval(NamedTuple):
    """An interval, both ends included."""

    low: float
    high: float


def wilson(successes: int, trials: int, *, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a success probability (Wilson, 1927; Brown, Cai & DasGupta, 2001).

    It holds near 0 and 1 and for few trials, where the normal approximation around the observed share fails.

    Args:
        successes: k.
        trials: n >= 1.
        level: Of confidence, in (0, 1).

    Raises:
        InputError: Not 0 <= k <= n, n >= 1.
    """
    _check(successes, trials)
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
    share, scale = successes / trials, 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Interval(low, high)


def prediction(successes: int, trials: int, future: int, *, level: float = LEVEL) -> Interval:
    """Interval for the share of successes among ``future`` further trials, of which nothing has been seen.

    Equal-tailed and of the beta-binomial law: the success probability has its posterior Beta(k + 1/2, n - k + 1/2)
    (Jeffreys' prior), the further trials are binomial given it. So the chance in both samples counts.

    Args:
        successes: k.
        trials: n >= 1.
        future: Number of further trials, >= 1.
        level: Least probability of the interval, in (0, 1).

    Raises:
        InputError: Not 0 <= k <= n, n >= 1, future >= 1.
    """
    _check(successes, trials)
    _check(0, future)
    below = beta_binomial_log_pmf(successes + _JEFFREYS, trials - successes + _JEFFREYS, future).exp().cumsum(0)
    tail = (1 - level) / 2
    low = int(torch.searchsorted(below, torch.tensor(tail, dtype=torch.float64)))
    high = int(torch.searchsorted(below, torch.tensor(1 - tail, dtype=torch.float64)))
    return Interval(low / future, min(high, future) / future)


def beta_binomial_log_pmf(alpha: float, beta: float, trials: int) -> Tensor:
    """Logarithms of P(X = x) for x = 0..n, shape (n + 1,): X | p ~ Binomial(n, p), p ~ Beta(alpha, beta)."""
    x = torch.arange(trials + 1, dtype=torch.float64)
    n, a, b = (torch.tensor(float(value), dtype=torch.float64) for value in (trials, alpha, beta))
    choose = torch.lgamma(n + 1) - torch.lgamma(x + 1) - torch.lgamma(n - x + 1)
    return choose + _log_beta(x + a, n - x + b) - _log_beta(a, b)


def probability_better(wins: int, losses: int) -> float:
    """Posterior probability that the first of two networks is truly the better one, from paired answers.

    Of images on which both are right, or both wrong, nothing is learned. With a flat Dirichlet prior on the three
    outcomes of an image, the share of wins among decisive images has the posterior Beta(wins + 1, losses + 1),
    whatever the number of undecided images; its mass above 1/2 is P(Binomial(wins + losses + 1, 1/2) <= wins).

    Args:
        wins: Images on which the first alone is right.
        losses: Images on which the second alone is right.

    Raises:
        InputError: A count is negative.
    """
    _check(wins, wins + losses + 1)
    _check(losses, wins + losses + 1)
    total = torch.tensor(wins + losses + 1.0, dtype=torch.float64)
    x = torch.arange(wins + 1, dtype=torch.float64)
    log_pmf = torch.lgamma(total + 1) - torch.lgamma(x + 1) - torch.lgamma(total - x + 1) - total * math.log(2)
    return min(1.0, float(log_pmf.exp().sum()))


def bootstrap_mean(values: Tensor, *, generator: torch.Generator, count: int = 1000, level: float = LEVEL) -> Interval:
    """Percentile interval of a mean over images (Efron, 1979): images are drawn again with replacement.

    Args:
        values: (N,), one number an image.
        generator: Draws the resamples, on the CPU.
        count: Number of resamples.
        level: Of confidence.
    """
    column = values.double()[:, None]
    found = torch.cat([weights @ column for weights in _resamples(len(values), count, generator)]).flatten()
    low, high = torch.quantile(found, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(low, high)


def bootstrap_calibration(
    gaps: Tensor, bins: Tensor, *, generator: torch.Generator, count: int = 1000, level: float = LEVEL
) -> Interval:
    """Interval of the expected calibration error: sum over bins of |sum of the gaps in it| / N.

    Resampling adds chance to every bin, and chance raises a sum of absolute values: resampled errors lie above the
    observed one. The basic interval, which mirrors their quantiles at the observed error, turns this bias round
    (Davison & Hinkley, 1997, 5.2); it is cut at 0.

    Args:
        gaps: (N,), correct (0 or 1) minus confidence.
        bins: (N,) int64, the bin of each image, from 0 on.
        generator: As of :func:`bootstrap_mean`.
        count: Likewise.
        level: Likewise.
    """
    table = gaps.new_zeros(len(gaps), int(bins.max()) + 1, dtype=torch.float64)
    table[torch.arange(len(gaps)), bins] = gaps.double()
    observed = float(table.mean(0).abs().sum())

    def errors(weights: Tensor) -> Tensor:
        return (weights @ table).abs().sum(1)

    found = torch.cat([errors(weights) for weights in _resamples(len(gaps), count, generator)])
    low, high = torch.quantile(found, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(min(1.0, max(0.0, 2 * observed - high)), min(1.0, max(0.0, 2 * observed - low)))


def _resamples(size: int, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Weights of resamples, (R, N) rows that sum to 1, in parts of bounded size, R in all being ``count``."""
    part = max(1, _AT_ONCE // size)
    for start in range(0, count, part):
        rows = min(part, count - start)
        drawn = torch.randint(size, (rows, size), generator=generator)
        yield torch.zeros(rows, size, dtype=torch.float64).scatter_add_(
            1, drawn, torch.full(drawn.shape, 1 / size, dtype=torch.float64)
        )


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def _check(successes: int, trials: int) -> None:
    if not (trials >= 1 and 0 <= successes <= trials):
        raise InputError(
            "successes and trials", "must be 0 <= successes <= trials, trials >= 1", value=f"{successes} of {trials}"
        )
