from __future__ import annotations

import pytest
import torch
from bench.peers import budget
from torch import nn

from pgnas.nn import measure


def test_the_full_network_s_epochs_cost_themselves():
    assert budget.of_training(20, macs=7, full_macs=7) == 20


@pytest.mark.parametrize("cost", [1.0, 0.4, 0.098, 0.33])
def test_affordable_epochs_spend_the_budget_and_no_more(cost: float):
    epochs = budget.affordable(20.0, cost)
    assert epochs * cost <= 20.0 + 1e-6 < (epochs + 1) * cost + 1e-5


def test_a_pass_over_an_epoch_s_images_costs_a_third_of_training_on_them():
    macs, images = 1000, 128
    passed = budget.of_passes(macs * images, full_macs=macs, images=images)
    assert 3 * passed == pytest.approx(budget.of_training(1, macs=macs, full_macs=macs))


def test_compute_is_counted_in_what_measure_counts():
    wide, narrow = (nn.Conv2d(3, channels, 3, bias=False) for channels in (8, 2))
    counts = [measure(layer, (torch.zeros(1, 3, 8, 8),)) for layer in (wide, narrow)]
    assert budget.of_training(8, macs=counts[1].macs, full_macs=counts[0].macs) == 2
