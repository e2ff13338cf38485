"""A gated layer: the plain product's outputs and gradients bit for bit, in the memory of the layer without a gate."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import pgnas
from pgnas.nn.gate import apply_gate
from pgnas.nn.gated_layer import gated_layer
from pgnas.supernets import build_model

LAYERS = {
    "conv": (nn.Conv2d(6, 4, 3, padding=1), (3, 6, 5, 5), 1),
    "strided": (nn.Conv2d(6, 4, 1, stride=2, bias=False), (3, 6, 5, 5), 1),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), (3, 6, 5, 5), 1),
    "transposed": (nn.ConvTranspose2d(6, 4, 2), (3, 6, 5, 5), 1),
    "volumes": (nn.Conv3d(6, 4, 2), (3, 6, 3, 3, 3), 1),
    "clips": (nn.Conv1d(6, 4, 2), (6, 6, 5), 1),  # two rows an example
    "linear": (nn.Linear(6, 6), (6, 6), 1),  # input, weight and output of one shape
    "tokens": (nn.Linear(6, 4), (3, 5, 6), 2),  # linear makes a view of its input
}


def gradients(call, layer, x, logits):
    x, logits = x.clone().requires_grad_(), logits.clone().requires_grad_()
    output = call(layer, x.relu(), torch.sigmoid(logits))
    found = torch.autograd.grad(output.sin().sum(), [x, logits, *layer.parameters()])
    return [output, *found]


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_those_of_the_product(name):
    layer, shape, axis = LAYERS[name]
    rng = torch.Generator().manual_seed(0)
    x, logits = torch.randn(shape, generator=rng), torch.randn(3, 6, generator=rng)
    found = gradients(lambda net, x, mask: gated_layer(net, x, mask, axis), layer, x, logits)
    wanted = gradients(lambda net, x, mask: net(apply_gate(x, mask, axis)), layer, x, logits)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_an_input_changed_after_the_forward_pass_is_noticed():
    x, layer = torch.randn(2, 6, 4, 4), nn.Conv2d(6, 4, 1)
    output = gated_layer(layer, x, torch.rand(2, 6), 1)
    x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        output.sum().backward()


def peak_bytes(network, x, y):
    """Most bytes of tensors at once that a training step allocates, apart from the weights and their gradients."""
    network.train()
    F.cross_entropy(network(x), y).backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        F.cross_entropy(network(x), y).backward()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = torch.tensor([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).cumsum(0)
    return int(held.max())


@pytest.mark.parametrize("granularity", ["channel", "group"])
def test_a_training_step_needs_hardly_more_memory_than_without_gates(granularity):
    x, y = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    network = build_model(
        "multibranch-resnet:width=8,blocks=1", in_channels=3, num_classes=10, image_size=(32, 32), seed=0
    ).module
    supernet = pgnas.supernet(network, x, granularity)
    assert peak_bytes(supernet, x, y) <= 1.1 * peak_bytes(network, x, y)
