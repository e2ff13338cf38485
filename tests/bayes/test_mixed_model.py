"""The mixed model is the best linear unbiased prediction, and finds the variance that features explain."""

import pytest
import torch
from torch import Tensor

from pgnas.bayes._mixed_model import MOST_FEATURES, additive_variance, predicted, standardized


def drawn(arms: int, features: int, seed: int) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(arms, features, generator=generator) < 0.4, generator


def test_features_are_centred_scaled_and_constants_left_out() -> None:
    kept, _ = drawn(50, 8, 0)
    kept[:, 3] = True
    z = standardized(kept)
    assert z.shape == (50, 7)
    assert torch.allclose(z.mean(0), torch.zeros(7, dtype=torch.float64), atol=1e-12)
    assert float(z.square().sum(1).mean()) == pytest.approx(1.0)
    assert standardized(torch.ones(5, 2)).shape == (5, 0)


def test_mixtures_of_many_features_keep_their_inner_products() -> None:
    kept, _ = drawn(30, 3 * MOST_FEATURES, 1)
    z = standardized(kept)
    assert z.shape == (30, MOST_FEATURES)
    whole = kept.double() - kept.double().mean(0)
    whole = whole / whole.square().sum(1).mean().sqrt()
    assert torch.allclose(z @ z.T, whole @ whole.T, atol=0.15)


@pytest.mark.parametrize("features", [0, 5, 60])
def test_the_prediction_is_the_conditional_mean(features: int) -> None:
    kept, generator = drawn(40, features, 2)
    z = standardized(kept)
    values, noise = torch.randn(40, generator=generator).double(), torch.rand(40, generator=generator).double()
    covariance = 0.3 * z @ z.T + 0.2 * torch.eye(40, dtype=torch.float64)
    wanted = covariance @ torch.linalg.solve(covariance + torch.diag(noise), values)
    assert torch.allclose(predicted(z, values, noise, additive=0.3, own=0.2), wanted)
    alone = predicted(z, values, noise, additive=0.0, own=0.5)
    assert torch.allclose(alone, 0.5 / (0.5 + noise) * values)


def test_what_is_seen_without_noise_is_predicted_as_seen() -> None:
    kept, generator = drawn(40, 5, 3)
    values = torch.randn(40, generator=generator).double()
    zero = torch.zeros(40, dtype=torch.float64)
    assert torch.allclose(predicted(standardized(kept), values, zero, additive=1.0, own=0.5), values)


def test_the_variance_of_features_is_found_whatever_a_group_has_in_common() -> None:
    """Images tell the arms of a group the same wrong things about the features: that must not count."""
    arms, groups, found = 4000, 40, []
    for seed in range(5):
        kept, generator = drawn(arms, 30, seed)
        z, group = standardized(kept), torch.arange(arms) % groups
        worth = torch.randn(30, generator=generator).double() * 0.5
        wrong = torch.randn(groups, 30, generator=generator).double()
        own = torch.randn(arms, generator=generator).double()
        values = z @ worth + (z * wrong[group]).sum(1) + own
        found.append(additive_variance(z, values - values.mean(), group) / float(worth.square().mean()))
    assert sum(found) / 5 == pytest.approx(1.0, abs=0.2)


def test_with_one_group_nothing_can_be_told() -> None:
    kept, generator = drawn(50, 4, 4)
    one = torch.zeros(50, dtype=torch.int64)
    assert additive_variance(standardized(kept), torch.randn(50, generator=generator).double(), one) == 0.0
    assert additive_variance(torch.empty(50, 0).double(), torch.ones(50).double(), torch.arange(50)) == 0.0
