"""Intervals hold what they promise: exact small cases, and coverage over every outcome or by simulation."""

from __future__ import annotations

import math
from fractions import Fraction
from math import comb

import pytest
import torch

from pgnas.bayes import bootstrap_calibration, bootstrap_mean, prediction, probability_better, wilson
from pgnas.bayes.intervals import beta_binomial_log_pmf
from pgnas.errors import InputError


def binomial(n, p):
    return [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (8123, 10_000)])
def test_wilson_solves_its_quadratic(k, n):
    low, high = wilson(k, n)
    z = 1.959963984540054
    for end in (low, high):
        if 0 < end < 1:
            assert abs(k / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-6)
    assert 0 <= low <= k / n <= high <= 1
    assert low < high


@pytest.mark.parametrize("n", [40, 200])
def test_wilson_covers_in_the_mean_over_p(n):
    ends = [wilson(k, n) for k in range(n + 1)]
    coverage = []
    for p in torch.linspace(0.02, 0.98, 97, dtype=torch.float64).tolist():
        coverage.append(sum(mass for mass, (low, high) in zip(binomial(n, p), ends, strict=True) if low <= p <= high))
    assert sum(coverage) / len(coverage) == pytest.approx(0.95, abs=0.01)
    assert min(coverage) > 0.89  # Wilson's known dips near the ends


@pytest.mark.parametrize(("a", "b", "n"), [(1, 1, 7), (3, 2, 6), (1, 5, 9)])
def test_the_beta_binomial_law_is_exact_for_whole_parameters(a, b, n):
    def beta(x, y):
        return Fraction(math.factorial(x - 1) * math.factorial(y - 1), math.factorial(x + y - 1))

    exact = [float(comb(n, k) * beta(k + a, n - k + b) / beta(a, b)) for k in range(n + 1)]
    torch.testing.assert_close(
        beta_binomial_log_pmf(a, b, n).exp(), torch.tensor(exact, dtype=torch.float64), rtol=1e-9, atol=0
    )


def test_a_prediction_is_the_shortest_pair_of_tails_that_fit():
    low, high = prediction(8, 10, 20)
    law = beta_binomial_log_pmf(8.5, 2.5, 20).exp()
    first, last = round(low * 20), round(high * 20)
    assert law[:first].sum() < 0.025 <= law[: first + 1].sum()
    assert law[last + 1 :].sum() <= 0.025 < law[last:].sum()


def test_both_samples_count_and_nothing_else_for_huge_ones():
    estimate = wilson(160, 200)
    near, far = prediction(160, 200, 100), prediction(160, 200, 1_000_000)
    assert near.low < estimate.low
    assert near.high > estimate.high
    assert far.low == pytest.approx(estimate.low, abs=0.004)
    sure = prediction(800_000, 1_000_000, 1000)  # the first sample's own variance vanishes
    assert sure.high - sure.low == pytest.approx(2 * 1.96 * math.sqrt(0.16 / 1000), abs=0.003)


@pytest.mark.parametrize(("n", "m"), [(72, 360), (40, 40)])
def test_predictions_cover_the_share_in_a_further_sample(n, m):
    ends = [prediction(k, n, m) for k in range(n + 1)]
    for p in (0.6, 0.8, 0.9, 0.97):
        further = torch.tensor(binomial(m, p), dtype=torch.float64)
        shares = torch.arange(m + 1, dtype=torch.float64) / m
        covered = sum(
            mass * float(further[(shares >= low) & (shares <= high)].sum())
            for mass, (low, high) in zip(binomial(n, p), ends, strict=True)
        )
        assert covered > 0.93, p


def test_the_better_of_two_by_paired_answers():
    assert probability_better(0, 0) == 0.5
    assert probability_better(1, 0) == pytest.approx(0.75)  # Beta(2, 1) has the density 2 x
    assert probability_better(3, 0) == pytest.approx(1 - 0.5**4)
    for wins, losses in ((5, 9), (40, 41), (300, 250)):
        assert probability_better(wins, losses) + probability_better(losses, wins) == pytest.approx(1)
    x = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = x**12 * (1 - x) ** 7
    assert probability_better(12, 7) == pytest.approx(float(density[100_000:].sum() / density.sum()), abs=1e-6)


def test_the_probability_is_calibrated_when_nature_draws_from_the_prior():
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(4000, generator=generator, dtype=torch.float64)
    wins = (torch.rand(4000, 12, generator=generator, dtype=torch.float64) < theta[:, None]).sum(1)
    told = torch.tensor([probability_better(k, 12 - k) for k in range(13)])[wins]
    truly = (theta > 0.5).double()
    for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.01)):
        among = (told >= low) & (told < high)
        assert float(truly[among].mean()) == pytest.approx(float(told[among].mean()), abs=0.04)


def test_the_bootstrap_of_a_mean_covers_it_and_repeats_with_its_seed():
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for _ in range(200):
        values = torch.empty(80, dtype=torch.float64).exponential_(generator=generator)
        low, high = bootstrap_mean(values, generator=generator, count=200)
        covered += low <= 1 <= high
    assert 175 <= covered <= 199
    values = torch.arange(10.0)
    one, two = (bootstrap_mean(values, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert one == two
    assert one.low < 4.5 < one.high


def test_the_interval_of_a_calibration_error_does_not_lie_above_it():
    generator = torch.Generator().manual_seed(2)
    covered = 0
    for _ in range(100):  # perfectly calibrated: the true error is 0, every observed one is above
        confidence = torch.rand(300, generator=generator, dtype=torch.float64) * 0.5 + 0.5
        correct = torch.rand(300, generator=generator, dtype=torch.float64) < confidence
        gaps, bins = correct.double() - confidence, (confidence * 10).long()
        observed = torch.zeros(11, dtype=torch.float64).index_add(0, bins, gaps).abs().sum() / 300
        low, high = bootstrap_calibration(gaps, bins, generator=generator, count=200)
        assert low <= observed + 1e-12
        covered += low <= 0.02
        assert high <= 1
    assert covered >= 90


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(k, n):
    with pytest.raises(InputError, match="successes"):
        wilson(k, n)
