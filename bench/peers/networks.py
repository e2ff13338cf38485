"""The two base networks, and smaller ones of the same form from the shapes of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from pgnas.supernets.parts import require_range
from pgnas.supernets.registry import register

VGG = "vgg16-bn-cifar"
STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
"""Of VGG-16: channels as a multiple of the first stage's, and convolutions."""
POOLED = 4
"""Stages that a pooling follows: with the fifth, images of 16x16 pixels would end at half a pixel."""


@dataclass(frozen=True)
class Network:
    """A base network and its cap.

    Attributes:
        spec: What ``pgnas run --model`` takes, once this module is imported.
        capped: What is capped.
        cap: The cap of the bench, as a share of the full network's.
    """

    spec: str
    capped: Literal["macs", "params"]
    cap: str


NETWORKS = {
    "resnet": Network("multibranch-resnet:width=32,blocks=1", "macs", "40%"),
    "vgg": Network(f"{VGG}:width=32", "params", "10%"),
}


@register(VGG, "VGG-16 with BatchNorm in its CIFAR form: four poolings, one linear layer", width="width", image_size=16)
def vgg16_bn(*, in_channels: int = 3, num_classes: int = 10, width: int = 32) -> nn.Module:
    """VGG-16-BN for images of 16x16 pixels; ``width`` is that of the first stage, 64 in the original.

    The form is the usual one of the pruning literature: convolutions without biases before BatchNorm, and one linear
    layer instead of three.
    """
    require_range(VGG, width=width)
    layers: list[nn.Module] = []
    inputs = in_channels
    for stage, (multiple, convolutions) in enumerate(STAGES):
        for _ in range(convolutions):
            outputs = multiple * width
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        if stage < POOLED:
            layers.append(nn.MaxPool2d(2))
    network = nn.Sequential()
    network.add_module("features", nn.Sequential(*layers))
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))  # of 16x16 images nothing is left to average
    network.add_module("flatten", nn.Flatten())
    network.add_module("classifier", nn.Linear(inputs, num_classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def reshaped(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Give a base network (it is changed) the shapes and values of a pruned one's state.

    A pruned network is kept as its tensors alone; layers of the base network become as large as these say. Only plain
    convolutions (one group), BatchNorm and linear layers change.
    """
    for name, layer in network.named_modules():
        own = {key: tensors[f"{name}.{key}"] for key, _ in _tensors(layer) if f"{name}.{key}" in tensors}
        for key, value in own.items():
            if key in dict(layer.named_parameters(recurse=False)):
                setattr(layer, key, nn.Parameter(value.detach().clone()))
            else:
                setattr(layer, key, value.detach().clone())
        if isinstance(layer, nn.Conv2d):
            layer.out_channels, layer.in_channels = layer.weight.shape[:2]
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, nn.BatchNorm2d):
            layer.num_features = len(layer.weight)
    network.load_state_dict(dict(tensors))
    return network


def _tensors(layer: nn.Module) -> list[tuple[str, Tensor]]:
    return [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
