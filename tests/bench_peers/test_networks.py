from __future__ import annotations

import torch
from bench.peers.methods.pgnas_search import STEPS, drop_rate
from bench.peers.networks import reshaped, vgg16_bn
from torch import nn

from pgnas import measure, supernet
from pgnas.seeds import derive_seed
from pgnas.stages.fitting import draw

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


def test_all_random_candidates_are_under_the_cap_and_no_lower_rate_has_that():
    made = supernet(vgg16_bn(width=2), IMAGES)
    full = made.count(made.open()).params
    caps = {"params": int(0.4 * full)}
    rate = drop_rate(made, caps, seed=3, count=4)

    def params(drop: float) -> list[int]:
        made.gates.fix_(1 - drop)
        generator = torch.Generator().manual_seed(derive_seed(3, "candidates"))
        return [c.counts.params for c in draw(made, 4, {}, generator=generator, with_mode=False)]

    assert max(params(rate)) <= caps["params"] < max(params(rate - 2**-STEPS))
