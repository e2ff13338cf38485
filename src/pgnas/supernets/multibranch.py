"""The multi-branch ResNet of the paper's SupNet-M: shake-shake's network without the shaking.

A 3x3 convolution to 16 channels, then stages of blocks; a block sums a skip and several residual paths
ReLU-Conv3x3-BN-ReLU-Conv3x3-BN. Each later stage halves the resolution and doubles the width; its skip is two pooled
1x1 convolutions, the second on the image shifted by one pixel, concatenated. The paper's instance has width 96, 4
blocks a stage and 2 paths.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pgnas.supernets.parts import FactorizedReduction, require_range
from pgnas.supernets.registry import register

STEM = 16


class ResidualPath(nn.Module):
    """ReLU-Conv3x3-BN-ReLU-Conv3x3-BN; the first convolution has the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        x = self.bn1(self.conv1(F.relu(x)))
        y: Tensor = self.bn2(self.conv2(F.relu(x)))
        return y


class ShiftedSkip(FactorizedReduction):
    """Half resolution, two views: every second pixel, and every second pixel of the image shifted by one."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, ceil(H / 2), ceil(W / 2))."""
        return super().forward(F.relu(x))


class ProjectionSkip(nn.Module):
    """One 1x1 convolution at full resolution (stage 1)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        y: Tensor = self.bn(self.conv(F.relu(x)))
        return y


class Block(nn.Module):
    """The sum of a skip and the residual paths."""

    def __init__(self, inputs: int, outputs: int, stride: int, branches: int) -> None:
        super().__init__()
        skip: nn.Module = nn.Identity()
        if stride == 2:
            skip = ShiftedSkip(inputs, outputs)
        elif inputs != outputs:
            skip = ProjectionSkip(inputs, outputs)
        self.skip = skip
        self.paths = nn.ModuleList(ResidualPath(inputs, outputs, stride) for _ in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y: Tensor = self.skip(x)
        for path in self.paths:
            y = y + path(x)
        return y


class MultibranchResNet(nn.Module):
    """The network; see the module's docstring.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes.
        width: Channels of the first stage; stage s has width * 2^s.
        blocks: Blocks a stage.
        branches: Residual paths a block.
        stages: Stages.
    """

    def __init__(
        self, *, in_channels: int, num_classes: int, width: int, blocks: int, branches: int, stages: int
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, STEM, 3, 1, 1, bias=False), nn.BatchNorm2d(STEM))
        layers: list[nn.Module] = []
        inputs = STEM
        for stage in range(stages):
            outputs = width * 2**stage
            for block in range(blocks):
                layers.append(Block(inputs, outputs, 2 if stage > 0 and block == 0 else 1, branches))
                inputs = outputs
        self.blocks = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_channels, H, W)."""
        x = F.relu(self.blocks(self.stem(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.classifier(x)
        return logits


@register(
    "multibranch-resnet", "the paper's SupNet-M construction: a ResNet whose blocks sum several paths", width="width"
)
def multibranch_resnet(
    *, in_channels: int = 3, num_classes: int = 10, width: int = 32, blocks: int = 1, branches: int = 2, stages: int = 3
) -> nn.Module:
    """Build a :class:`MultibranchResNet`; the paper's instances are ``PAPER_SUPERNETS["M"]`` and ``["MI"]``."""
    require_range("multibranch-resnet", width=width, blocks=blocks, branches=branches, stages=stages)
    return MultibranchResNet(
        in_channels=in_channels, num_classes=num_classes, width=width, blocks=blocks, branches=branches, stages=stages
    )
