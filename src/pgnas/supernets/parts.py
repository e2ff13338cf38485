"""Pieces that several families are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgnas.errors import ModelError


class FactorizedReduction(nn.Module):
    """Half resolution without losing every second pixel: two 1x1 convolutions, the second on the shifted image, BN.

    One reads every second pixel, the other every second pixel of the image shifted by one to the upper left.

    Args:
        inputs: Channels read.
        outputs: Channels made; the first convolution makes the smaller half.
        eps: BatchNorm's.
    """

    def __init__(self, inputs: int, outputs: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs // 2, 1, bias=False)
        self.conv2 = nn.Conv2d(inputs, outputs - outputs // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, ceil(H / 2), ceil(W / 2))."""
        straight = self.conv1(F.avg_pool2d(x, 1, 2))
        shifted = self.conv2(F.avg_pool2d(F.pad(x, (-1, 1, -1, 1)), 1, 2))
        joined: Tensor = self.bn(torch.cat([straight, shifted], 1))
        return joined


def require_range(family: str, *, most: int = 4096, **values: int) -> None:
    """Refuse a size parameter of a family outside [1, most].

    Raises:
        ModelError: One lies outside.
    """
    for name, value in values.items():
        if value < 1 or value > most:
            raise ModelError(
                f"{family} {name}", f"must lie in [1, {most}]", value=value, remedy="choose a value inside"
            )


def parse_blocks(family: str, text: str) -> tuple[int, ...]:
    """Read ``"6-12-24-16"``, the layers of each stage.

    Raises:
        ModelError: It is not a list of one to eight numbers in [1, 512].
    """
    parts = text.split("-")
    if len(parts) > 8 or not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 512 for part in parts):
        raise ModelError(
            f"{family} blocks",
            "must be one to eight numbers in [1, 512], a stage each",
            value=repr(text),
            remedy="write for example blocks=2-2",
        )
    return tuple(int(part) for part in parts)


def require_choice(family: str, name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a word that is not one of ``known``.

    Raises:
        ModelError: It is not.
    """
    if value not in known:
        raise ModelError(
            f"{family} {name}", f"must be one of {', '.join(known)}", value=repr(value), remedy="choose one of them"
        )


def require_stages(family: str, blocks: str, *, stem: str, stems: tuple[str, ...], **sizes: int) -> tuple[int, ...]:
    """Check the parameters of a family that has a stem and stages of blocks; the layers of each stage.

    Raises:
        ModelError: One is out of its range.
    """
    require_range(family, **sizes)
    require_choice(family, "stem", stem, stems)
    return parse_blocks(family, blocks)
