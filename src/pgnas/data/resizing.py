"""Resizing of image tensors to a square and of volumes to a cube."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pgnas.data.memory import require_memory

_CHUNK = 256  # images at a time, to bound the float copies


def resized(images: Tensor, side: int | None) -> Tensor:
    """The centre square of each image, or the centre cube of each volume, at ``side`` pixels.

    Images: bilinear with antialiasing. Volumes: means over boxes when they shrink, trilinear when they grow.

    Args:
        images: (N, C, [D,] H, W) uint8.
        side: ``None``: as they are.

    Returns:
        (N, C, [side,] side, side) uint8; ``images`` itself when there is nothing to do.

    Raises:
        DataError: The result does not fit in memory.
    """
    count, channels, *sizes = images.shape
    target = [side or 0] * len(sizes)
    if side is None or sizes == target:
        return images
    require_memory("images", (count, channels, *target))
    shortest = min(sizes)
    centre = images
    for axis, size in enumerate(sizes, start=2):
        centre = centre.narrow(axis, (size - shortest) // 2, shortest)
    if shortest == side:
        return centre.contiguous()
    out = images.new_empty((count, channels, *target))
    for source, scaled in zip(torch.split(centre, _CHUNK), torch.split(out, _CHUNK), strict=True):
        scaled.copy_(_scaled(source.float(), target).round_().clamp_(0, 255))
    return out


def _scaled(images: Tensor, target: list[int]) -> Tensor:
    if images.ndim == 4:
        return F.interpolate(images, target, mode="bilinear", antialias=True)
    if target[0] < images.shape[2]:  # torch has no antialiasing in three dimensions
        return F.interpolate(images, target, mode="area")
    return F.interpolate(images, target, mode="trilinear")
