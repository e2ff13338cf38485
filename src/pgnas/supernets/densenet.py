"""DenseNet, the paper's SupNet-D-121, and its inflation to video, SupNet-D3D-121.

Both are torchvision's DenseNet with growth 32 and blocks 6-12-24-16 in the paper's instances. A convolution that reads
a concatenation gets one group of gates for each concatenated source.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from pgnas.supernets.parts import require_stages
from pgnas.supernets.registry import register

STEMS = ("7x7", "3x3", "small")
_TAKES_TIME = re.compile(r"denselayer\d+\.conv2$")  # the layers that become separable in time and space


def densenet_2d(*, in_channels: int, num_classes: int, growth: int, blocks: tuple[int, ...], stem: str) -> nn.Module:
    """A DenseNet of torchvision (bottlenecks of 4 * growth, 2 * growth channels after the stem) with a choice of stems.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes.
        growth: Channels that each dense layer adds.
        blocks: Dense layers of each block.
        stem: ``7x7`` with stride 2 and a pooling with stride 2; ``3x3``: three of them in the place of the 7x7 one, the
            first with the stride (the paper's code); ``small``: one 3x3 at full resolution and no pooling.
    """
    from torchvision.models import DenseNet  # seconds to import

    outputs = 2 * growth
    network: nn.Module = DenseNet(growth, blocks, outputs, num_classes=num_classes)
    features = network.get_submodule("features")
    features.conv0 = _STEM_LAYERS[stem](in_channels, outputs)
    if stem == "small":
        features.pool0 = nn.Identity()
    for module in features.conv0.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network


def _plain_stem(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 7, 2, 3, bias=False)


def _three_stem(inputs: int, outputs: int) -> nn.Module:
    half = outputs // 2
    return nn.Sequential(
        nn.Conv2d(inputs, half, 3, 2, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
        nn.Conv2d(half, half, 3, 1, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
        nn.Conv2d(half, outputs, 3, 1, 1, bias=False),
    )  # fmt: skip


def _small_stem(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)


_STEM_LAYERS: dict[str, Callable[[int, int], nn.Module]] = dict(
    zip(STEMS, (_plain_stem, _three_stem, _small_stem), strict=True)
)


class TimeThenSpace(nn.Sequential):
    """A separable 3-D convolution: (3, 1, 1) over time with as many outputs as inputs, then (1, k, k).

    Args:
        frame: The 2-D convolution whose place it takes.
    """

    def __init__(self, frame: nn.Conv2d) -> None:
        super().__init__()
        self.time = nn.Conv3d(frame.in_channels, frame.in_channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.space = _to_3d(frame)


class DenseNet3d(nn.Module):
    """A DenseNet for clips, made of one for images.

    Every 3x3 convolution of a dense layer becomes a separable one, 3x1x1 over time and then 1x3x3 within the frame; all
    other layers work frame by frame. Time is pooled only at the end.

    Args:
        images: The network for images, from :func:`densenet_2d`; it is left as it was. Its weights are carried over by
            :func:`inflate_weights`.
    """

    def __init__(self, images: nn.Module) -> None:
        super().__init__()
        self.features = copy.deepcopy(images.get_submodule("features"))
        self.classifier = copy.deepcopy(images.get_submodule("classifier"))
        for name, layer in list(self.features.named_modules()):
            if not any(True for _ in layer.children()):
                owner, _, leaf = name.rpartition(".")
                inflated = TimeThenSpace(layer) if _TAKES_TIME.search(name) else _to_3d(layer)
                setattr(self.features.get_submodule(owner), leaf, inflated)
        self.load_state_dict(inflate_weights(images.state_dict()))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of clips (B, in_channels, T, H, W)."""
        x = F.adaptive_avg_pool3d(F.relu(self.features(x)), 1).flatten(1)
        logits: Tensor = self.classifier(x)
        return logits


def inflate_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a 2-D DenseNet (torchvision's names, the old ones too) as those of the :class:`DenseNet3d`.

    Kernels get a time axis of length 1. The convolutions over time, which images say nothing about, are the identity,
    so that each frame's features are at first what the 2-D network makes of it.

    Args:
        weights: Name to tensor, of the whole network for images.

    Returns:
        New names to tensors; what is not changed is the same tensor.
    """
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        # torchvision's downloadable files have names from before '.' was forbidden in a module's name
        name = re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", name)
        layer, _, leaf = name.rpartition(".")
        if value.ndim != 4:
            found[name] = value
        elif _TAKES_TIME.search(layer):
            channels = value.shape[1]
            found[f"{layer}.time.{leaf}"] = nn.init.dirac_(value.new_empty(channels, channels, 3, 1, 1))
            found[f"{layer}.space.{leaf}"] = value.unsqueeze(2)
        else:
            found[name] = value.unsqueeze(2)
    return found


@singledispatch
def _to_3d(layer: nn.Module) -> nn.Module:
    """A layer of a 2-D network as the layer that does the same to every frame (B, C, T, H, W) of a clip."""
    return layer


@_to_3d.register
def _(layer: nn.Conv2d) -> nn.Module:
    return nn.Conv3d(
        layer.in_channels,
        layer.out_channels,
        _framewise(1, layer.kernel_size),
        _framewise(1, layer.stride),
        _framewise(0, layer.padding),
        bias=layer.bias is not None,
    )


@_to_3d.register
def _(layer: nn.BatchNorm2d) -> nn.Module:
    return nn.BatchNorm3d(layer.num_features, layer.eps, layer.momentum)


@_to_3d.register
def _(layer: nn.MaxPool2d) -> nn.Module:
    sizes = (_framewise(1, layer.kernel_size), _framewise(1, layer.stride), _framewise(0, layer.padding))
    return nn.MaxPool3d(*sizes)


@_to_3d.register
def _(layer: nn.AvgPool2d) -> nn.Module:
    sizes = (_framewise(1, layer.kernel_size), _framewise(1, layer.stride), _framewise(0, layer.padding))
    return nn.AvgPool3d(*sizes)


def _framewise(time: int, size: Any) -> tuple[int, int, int]:
    """A 2-D layer's size with one more for time."""
    height, width = (size, size) if isinstance(size, int) else size
    return time, height, width


@register("densenet", "the paper's SupNet-D-121 construction: torchvision's DenseNet", width="growth")
def densenet(
    *, in_channels: int = 3, num_classes: int = 10, growth: int = 8, blocks: str = "3-3", stem: str = "small"
) -> nn.Module:
    """Build a :func:`densenet_2d`; the paper's instance is ``PAPER_SUPERNETS["D-121"]``."""
    layers = require_stages("densenet", blocks, stem=stem, stems=STEMS, growth=growth)
    return densenet_2d(in_channels=in_channels, num_classes=num_classes, growth=growth, blocks=layers, stem=stem)


@register(
    "densenet3d", "the paper's SupNet-D3D-121 construction: a DenseNet inflated to clips", width="growth", frames=8
)
def densenet3d(
    *, in_channels: int = 3, num_classes: int = 10, growth: int = 8, blocks: str = "3-3", stem: str = "small"
) -> nn.Module:
    """Build a :class:`DenseNet3d`; the paper's instance is ``PAPER_SUPERNETS["D3D-121"]``."""
    images = densenet(in_channels=in_channels, num_classes=num_classes, growth=growth, blocks=blocks, stem=stem)
    return DenseNet3d(images)
