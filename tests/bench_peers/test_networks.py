from __future__ import annotations

import torch
from bench.peers.methods.pgnas_search import FIT, SAMPLES, drop_rate
from bench.peers.networks import reshaped, vgg16_bn
from torch import nn

from pgnas import extract, measure, supernet
from pgnas.nn.cost import count_plan

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_vgg_is_vgg_16():
    convolutions = [m.out_channels for m in vgg16_bn(width=64).modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    # 13 convolutions and a classifier, with BatchNorm: 14.7 M parameters, as published for the CIFAR form
    assert measure(vgg16_bn(width=64), (IMAGES,)).params == 14_724_042
    assert vgg16_bn(width=4)(IMAGES).shape == (2, 10)


def test_a_base_network_takes_the_shapes_of_a_narrower_one():
    narrow, base = vgg16_bn(width=2).eval(), vgg16_bn(width=4).eval()
    made = reshaped(base, narrow.state_dict())
    assert made is base
    torch.testing.assert_close(made(IMAGES), narrow(IMAGES))
    assert measure(made, (IMAGES,)) == measure(narrow, (IMAGES,))
    made.train()(IMAGES).sum().backward()  # new parameters are trained
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_random_networks_at_the_drop_rate_are_under_the_cap_and_near_it():
    made = supernet(vgg16_bn(width=4), IMAGES)
    full = made.count(made.open()).params
    rate = drop_rate(made, {"params": 0.4 * full}, seed=0)
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(SAMPLES, made.gates.units, generator=generator)
    params = [count_plan(made.graph, made.plan_units(row < 1 - rate)).params / full for row in uniform]
    assert sum(share <= 0.4 for share in params) >= FIT - 4
    assert sum(params) / SAMPLES > 0.3
    assert measure(extract(made, made.open()), (IMAGES,)).params == full
