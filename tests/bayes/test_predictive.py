"""Averages of predictions: entropy by parts against enumeration, scores and calibration against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from pgnas.bayes import Predictive, brier, fit_temperature, reliability, tempered
from pgnas.bayes.predictive import bin_of, entropy


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def log_probs(*shape, seed=0, sharpness=2.0):
    return torch.log_softmax(sharpness * torch.randn(*shape, generator=generator(seed), dtype=torch.float64), -1)


def average(members):
    made = Predictive()
    for member in members:
        made.add(member)
    return made


def test_the_average_and_the_parts_of_its_entropy():
    members = log_probs(5, 20, 4)
    found = average(members)
    torch.testing.assert_close(found.log_probs().exp(), members.exp().mean(0))
    total, aleatoric, epistemic = found.uncertainty()
    p, mean = members.exp(), members.exp().mean(0)
    information = (p * (members - mean.log())).sum((0, 2)) / 5  # of class and network, from its definition
    torch.testing.assert_close(epistemic, information)
    torch.testing.assert_close(aleatoric + epistemic, total)
    assert (epistemic > 0).all()
    assert (total <= math.log(4)).all()


def test_one_network_and_equal_networks_have_nothing_epistemic():
    one = log_probs(1, 6, 3)
    for members in (one, one.expand(4, -1, -1)):
        assert float(average(members).uncertainty().epistemic.abs().max()) < 1e-12


def test_networks_that_are_sure_and_disagree_are_all_epistemic():
    sure = torch.tensor([[[0.0, -1e3]], [[-1e3, 0.0]]], dtype=torch.float64)
    total, aleatoric, epistemic = average(sure).uncertainty()
    assert (float(total), float(aleatoric), float(epistemic)) == pytest.approx((math.log(2), 0, math.log(2)))


def test_a_weight_is_how_often_a_network_was_drawn():
    first, second = log_probs(2, 6, 3)
    thrice = Predictive()
    thrice.add(first, weight=3)
    thrice.add(second)
    often = average([first, first, first, second])
    torch.testing.assert_close(thrice.log_probs(), often.log_probs())
    torch.testing.assert_close(thrice.uncertainty(), often.uncertainty())


def test_the_average_is_never_worse_than_the_mean_network_in_nll():
    members, labels = log_probs(7, 200, 5), torch.randint(5, (200,), generator=generator())
    nll = -members.gather(2, labels.expand(7, -1)[..., None]).mean()
    assert -average(members).log_probs().gather(1, labels[:, None]).mean() <= nll  # Jensen


def test_brier_is_the_squared_distance_to_the_truth():
    rows, labels = log_probs(30, 4), torch.randint(4, (30,), generator=generator())
    truth = torch.nn.functional.one_hot(labels, 4)
    torch.testing.assert_close(brier(rows, labels), (rows.exp() - truth).square().sum(1))


def test_the_bins_are_torchmetrics_and_give_its_calibration_error():
    rows = log_probs(500, 4)
    labels = torch.randint(4, (500,), generator=generator(1))
    confidence, predicted = rows.exp().max(1)
    bins = reliability(confidence, predicted == labels)
    error = sum(b.count * abs(b.accuracy - b.confidence) for b in bins if b.count) / 500
    wanted = multiclass_calibration_error(rows.exp(), labels, num_classes=4, n_bins=15, norm="l1")
    assert error == pytest.approx(float(wanted), abs=1e-6)
    assert sum(b.count for b in bins) == 500
    assert all(b.low <= b.confidence <= b.high for b in bins if b.count)
    assert [b.accuracy is None for b in bins] == [b.count == 0 for b in bins]


def test_confidence_one_is_in_the_last_bin():
    assert bin_of(torch.tensor([0.0, 0.5, 1.0]), 10).tolist() == [0, 5, 9]


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
def test_a_temperature_is_found_again(truth):
    rows = log_probs(20_000, 5)
    labels = torch.multinomial(tempered(rows, truth).exp(), 1, generator=generator(1))[:, 0]
    assert fit_temperature(rows, labels) == pytest.approx(truth, rel=0.05)


def test_a_temperature_stays_sane_where_everything_is_right():
    rows = log_probs(60, 4)
    labels = rows.argmax(1)
    assert 0.2 < fit_temperature(rows, labels) < 1
    assert torch.equal(tempered(rows, 0.3).argmax(1), labels)


def test_entropy_of_certainty_and_of_ignorance():
    rows = torch.tensor([[0.0, -math.inf], [math.log(0.5), math.log(0.5)]], dtype=torch.float64)
    torch.testing.assert_close(entropy(rows), torch.tensor([0.0, math.log(2)], dtype=torch.float64))
