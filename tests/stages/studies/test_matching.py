"""The drop rate at which random networks are as large as a posterior's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pgnas
from pgnas.stages.studies.matching import SAMPLES, matched_drop, mean_params


@pytest.fixture
def supernet():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    return pgnas.supernet(network, torch.randn(2, 1, 6, 6), "group")


def mean_size(supernet, count=300):
    """From other draws than the matching's."""
    generator = torch.Generator().manual_seed(99)
    return sum(supernet.count(supernet.sample(generator=generator)).params for _ in range(count)) / count


def test_random_networks_at_the_rate_are_as_large_as_the_posteriors(supernet):
    with torch.no_grad():
        supernet.gates.group_logits.copy_(torch.tensor([2.0, -1.0]))
    wanted = mean_size(supernet)
    drop, params = matched_drop(supernet, seed=0)
    supernet.gates.fix_(1 - drop)
    assert params == pytest.approx(wanted, rel=0.05)
    assert mean_size(supernet) == pytest.approx(wanted, rel=0.05)
    assert 0.12 < drop < 0.73  # between the drop rates of the two groups


def test_a_posterior_that_keeps_everything_is_matched_by_dropping_next_to_nothing(supernet):
    supernet.gates.fix_(1.0)
    full = supernet.count(supernet.open()).params
    drop, params = matched_drop(supernet, seed=0)
    assert params == full
    assert 0 <= drop < 1 / SAMPLES


def test_the_mean_size_counts_extracted_networks(supernet):
    kept = torch.rand(3, supernet.gates.units, generator=torch.Generator().manual_seed(0)) < 0.5
    sizes = [
        sum(p.numel() for p in pgnas.extract(supernet, supernet.gates.architecture(row)).parameters()) for row in kept
    ]
    assert mean_params(supernet, kept) == pytest.approx(sum(sizes) / 3)
