"""ResNet with several kernel sizes side by side, the paper's SupNet-R-50.

In every bottleneck the 3x3 convolution is replaced by parallel 1x1, 3x3, 5x5 (a 3x3 dilated by 2) and 9x9 (a 5x5
dilated by 2) convolutions; each makes a quarter of the maps, and they are concatenated. The rest is torchvision's
ResNet: width 64 and blocks 3-4-6-3 give the paper's instance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgnas.supernets.parts import require_stages
from pgnas.supernets.registry import register

KERNELS = {"conv1x1": (1, 1), "conv3x3": (3, 1), "conv5x5": (3, 2), "conv9x9": (5, 2)}
"""Name to (kernel size, dilation)."""

STEMS = ("7x7", "small")
EXPANSION = 4  # of torchvision's bottlenecks


class MultiKernelConv(nn.ModuleDict):
    """Parallel convolutions of several kernel sizes whose maps are concatenated.

    Args:
        inputs: Channels read by each.
        outputs: Channels made by all together; the first kernels make one more where it does not divide.
        stride: Of each.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        share, rest = divmod(outputs, len(KERNELS))
        for index, (name, (kernel, dilation)) in enumerate(KERNELS.items()):
            maps = share + (index < rest)
            if maps:
                padding = dilation * (kernel // 2)
                self[name] = nn.Conv2d(inputs, maps, kernel, stride, padding, dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        return torch.cat([convolution(x) for convolution in self.values()], 1)


class MultiKernelResNet(nn.Module):
    """The network; see the module's docstring. Layers have the names of torchvision's ResNet.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes.
        width: Channels of the stem; the bottlenecks of stage s have width * 2^s and give four times as many.
        blocks: Bottlenecks of each stage.
        stem: ``7x7`` (stride 2, then a pooling with stride 2) or ``small`` (3x3 at full resolution).
    """

    def __init__(self, *, in_channels: int, num_classes: int, width: int, blocks: tuple[int, ...], stem: str) -> None:
        super().__init__()
        is_small = stem == "small"
        kernel, stride = (3, 1) if is_small else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if is_small else nn.MaxPool2d(3, 2, 1)
        stages, inputs = [], width
        for index, count in enumerate(blocks):
            planes = width * 2**index
            strides = [1 if index == 0 else 2] + [1] * (count - 1)
            stage = []
            for stride in strides:
                stage.append(_bottleneck(inputs, planes, stride))
                inputs = planes * EXPANSION
            stages.append(nn.Sequential(*stage))
        self.stages = len(stages)
        for index, layers in enumerate(stages):
            self.add_module(f"layer{index + 1}", layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_channels, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for index in range(self.stages):
            x = self.get_submodule(f"layer{index + 1}")(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _bottleneck(inputs: int, planes: int, stride: int) -> nn.Module:
    """A bottleneck of torchvision with several kernels in the place of the 3x3 one."""
    from torchvision.models.resnet import Bottleneck  # seconds to import

    outputs = planes * EXPANSION
    skip = None
    if stride != 1 or inputs != outputs:
        skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    block: nn.Module = Bottleneck(inputs, planes, stride, skip)
    block.conv2 = MultiKernelConv(planes, planes, stride)
    return block


@register(
    "multikernel-resnet", "the paper's SupNet-R-50 construction: a ResNet with parallel kernel sizes", width="width"
)
def multikernel_resnet(
    *, in_channels: int = 3, num_classes: int = 10, width: int = 16, blocks: str = "1-1-1", stem: str = "small"
) -> nn.Module:
    """Build a :class:`MultiKernelResNet`; the paper's instance is ``PAPER_SUPERNETS["R-50"]``."""
    layers = require_stages("multikernel-resnet", blocks, stem=stem, stems=STEMS, width=width)
    return MultiKernelResNet(in_channels=in_channels, num_classes=num_classes, width=width, blocks=layers, stem=stem)
