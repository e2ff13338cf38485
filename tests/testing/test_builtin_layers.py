"""Every layer type of torch.nn that has a rule keeps its promise."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pgnas.nn.channels.ops import _RULES
from pgnas.testing import check_layer

CHANNELS = 4
SPATIAL = {0: (), 1: (7,), 2: (5, 6), 3: (4, 3, 4)}

MAKERS: dict[str, Callable[[type[nn.Module]], nn.Module]] = {  # those that need arguments, by the type's name
    "AdaptiveAvgPool": lambda kind: kind(2),
    "AdaptiveMaxPool": lambda kind: kind(2),
    "AvgPool": lambda kind: kind(2),
    "BatchNorm": lambda kind: kind(CHANNELS),
    "ConstantPad": lambda kind: kind(1, 0.5),
    "Conv": lambda kind: kind(CHANNELS, 3, 3, padding=1),
    "GroupNorm": lambda kind: kind(2, CHANNELS),
    "InstanceNorm": lambda kind: kind(CHANNELS, affine=True, track_running_stats=True),
    "LPPool": lambda kind: kind(2, 2),
    "LayerNorm": lambda kind: kind(CHANNELS),
    "LazyConv": lambda kind: kind(3, 3),
    "Linear": lambda kind: kind(CHANNELS, 3),
    "LocalResponseNorm": lambda kind: kind(2),
    "MaxPool": lambda kind: kind(2),
    "MultiheadAttention": lambda kind: kind(CHANNELS, 2),
    "PReLU": lambda kind: kind(CHANNELS),
    "PixelShuffle": lambda kind: kind(2),
    "PixelUnshuffle": lambda kind: kind(1),
    "RMSNorm": lambda kind: kind(CHANNELS),
    "ReflectionPad": lambda kind: kind(1),
    "ReplicationPad": lambda kind: kind(1),
    "SyncBatchNorm": lambda kind: kind(CHANNELS),
    "Threshold": lambda kind: kind(0.1, -0.2),
    "Upsample": lambda kind: kind(scale_factor=2),
    "ZeroPad": lambda kind: kind(1),
}
LAYERS = sorted((k for k in _RULES if isinstance(k, type) and issubclass(k, nn.Module)), key=lambda kind: kind.__name__)
# What these do depends on whole groups of channels, or lies on another axis: barriers until a rule says otherwise.
MIXED = {
    "GroupNorm",
    "LayerNorm",
    "RMSNorm",
    "LocalResponseNorm",
    "MultiheadAttention",
    "Softmax",
    "Softmax2d",
    "LogSoftmax",
    "Unflatten",
}


def make(kind: type[nn.Module]) -> nn.Module:
    name = re.sub(r"\dd$", "", kind.__name__).replace("Transpose", "")
    return MAKERS[name](kind) if name in MAKERS else kind()


def dimensions(kind: type[nn.Module]) -> int:
    found = re.search(r"(\d)d$", kind.__name__)
    return int(found[1]) if found else (0 if kind is nn.Linear else 2)


@pytest.mark.parametrize("kind", [k for k in LAYERS if k.__module__.startswith("torch.nn") and k.__name__ not in MIXED])
def test_it_is_followed_and_cut_right(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    report = check_layer(make(kind), torch.randn(2, CHANNELS, *SPATIAL[dimensions(kind)]), rounds=3)
    assert report.architectures == 6


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 4, 3, groups=4), (4, 5, 5)),
        (nn.Conv2d(4, 8, 3, groups=4, padding=1), (4, 5, 5)),
        (nn.Conv2d(6, 4, 1, groups=2), (6, 3, 3)),
        (nn.Conv1d(4, 3, 3, stride=2, bias=False), (4, 9)),
        (nn.ConvTranspose2d(4, 3, 2, stride=2), (4, 3, 3)),
        (nn.BatchNorm1d(4), (4,)),
        (nn.BatchNorm2d(4, affine=False), (4, 3, 3)),
        (nn.PReLU(), (4, 3, 3)),
        (nn.Flatten(), (3, 2, 2)),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (3, 2, 2)),
        (nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Hardswish(), nn.Conv2d(5, 3, 1)), (4, 5, 5)),
    ],
    ids=str,
)
def test_variants(layer: nn.Module, shape: tuple[int, ...]) -> None:
    check_layer(layer, torch.randn(2, *shape), rounds=3)


def test_channels_last() -> None:
    assert check_layer(nn.Linear(4, 3), torch.randn(2, 5, 4), channels_last=True).gated
    check_layer(nn.GELU(), torch.randn(2, 3, 2, 4), channels_last=True)
