"""Image files to one uint8 tensor, with Pillow in threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pgnas.data.inspection import (
    FORMATS,
    SIXTEEN_BIT,
    Inspection,
    attempt,
    broken_skipped,
    in_threads,
    inspect_images,
    quiet_pillow,
    require_readable,
    shown,
)
from pgnas.data.memory import require_memory

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, eq=False)
class Decoded:
    """Decoded images.

    Attributes:
        images: (M, C, H, W) uint8.
        kept: (M,) int64, increasing: which of the paths these are.
        notes: On sizes and on images that were skipped.
    """

    images: Tensor
    kept: Tensor
    notes: tuple[str, ...]


def decode_images(
    root: str,
    paths: Sequence[str],
    image_size: int | None,
    headers: Inspection | None = None,
    *,
    skip_broken: bool = False,
) -> Decoded:
    """Decode the images ``root/path``.

    All grey (8 or 16 bits, with or without alpha): one channel; otherwise three, RGB. Alpha is dropped, 16-bit values
    are scaled to 8, of an animation the first frame is taken, and an orientation noted in EXIF is not applied.

    Args:
        root: The folder that ``paths`` are relative to.
        paths: At least one.
        image_size: Side of the square to which the centre square of each image is resized (bilinear, antialiased);
            ``None``: as they are if all have one size, else 224.
        headers: Of the images, if they were inspected already.
        skip_broken: Leave out broken images, and note it.

    Raises:
        DataError: An image is broken, unless those are left out, or none is readable, or they do not fit in memory.
    """
    found = headers or inspect_images(root, paths)
    broken = dict(found.broken)
    broken_skipped(root, paths, broken, skip=skip_broken)
    require_readable(root, len(found.good))
    (width, height), note = found.target_size(image_size)
    channels = found.channels
    remedy = (
        "use a smaller --image-size, fewer images or folder:PATH:stream=on; a run that was begun with its images in "
        "memory goes on where there is as much, or in fewer processes"
    )
    require_memory(f"folder {shown(root)}", (len(paths), channels, height, width), remedy=remedy)
    pixels = np.empty((len(paths), channels, height, width), dtype=np.uint8)

    def decode(i: int) -> str | None:
        return attempt(lambda path: decode_into(pixels[i], path), os.path.join(root, paths[i]))

    with quiet_pillow():
        for i, trouble in zip(found.good, in_threads(decode, list(found.good)), strict=True):
            if trouble is not None:
                broken[i] = trouble
    skipped = broken_skipped(root, paths, broken, skip=skip_broken)
    require_readable(root, len(paths) - len(broken))
    images, kept = torch.from_numpy(pixels), torch.arange(len(paths))
    if broken:
        kept = torch.tensor([i for i in range(len(paths)) if i not in broken], dtype=torch.int64)
        images = images[kept]
    return Decoded(images, kept, (*([note] if note else []), *skipped))


def open_image(path: str, mode: str) -> Image.Image:
    """The image in 8 bits, ``mode`` ``"L"`` (grey) or ``"RGB"``."""
    with Image.open(path, formats=FORMATS) as opened:
        return _eight_bit(opened, mode)


def decode_into(out: np.ndarray[Any, np.dtype[np.uint8]], path: str) -> None:
    """Fill ``out``, (C, H, W), with the image, or its centre box of that aspect ratio resized (bilinear)."""
    channels, height, width = out.shape
    image = open_image(path, "L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize(
            (width, height), Image.Resampling.BILINEAR, box=_centre_box(*image.size, aspect=width / height)
        )
    out[:] = np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def _eight_bit(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in SIXTEEN_BIT:
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif image.mode == "P":
        image = image.convert("RGBA")  # directly to RGB, Pillow warns of transparency it would lose
    image.load()
    return image.convert(mode)


def _centre_box(width: int, height: int, *, aspect: float) -> tuple[float, float, float, float]:
    """The largest box about the centre whose width is ``aspect`` times its height."""
    wide, high = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high
