"""Resizing of image tensors to a square."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pgnas.data.memory import require_memory

_CHUNK = 256  # images at a time, to bound the float copies


def resized(images: Tensor, side: int | None) -> Tensor:
    """The centre square of each image at ``side`` x ``side`` pixels, bilinear with antialiasing.

    Args:
        images: (N, C, H, W) uint8.
        side: ``None``: as they are.

    Returns:
        (N, C, side, side) uint8; ``images`` itself when there is nothing to do.

    Raises:
        DataError: The result does not fit in memory.
    """
    count, channels, height, width = images.shape
    if side is None or (height, width) == (side, side):
        return images
    require_memory("images", (count, channels, side, side))
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    centre = images[:, :, top : top + square, left : left + square]
    if square == side:
        return centre.contiguous()
    out = images.new_empty((count, channels, side, side))
    for source, target in zip(torch.split(centre, _CHUNK), torch.split(out, _CHUNK), strict=True):
        scaled = F.interpolate(source.float(), (side, side), mode="bilinear", antialias=True)
        target.copy_(scaled.round_().clamp_(0, 255))
    return out
