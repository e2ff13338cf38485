"""Image files to one uint8 tensor, with Pillow in threads (it releases the GIL while it decodes)."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pgnas.data.memory import require_memory
from pgnas.errors import DataError

In = TypeVar("In")
Out = TypeVar("Out")
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MIXED_SIZE = 224
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # not EPS and others that start programs
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow reads 16-bit grey as one of these
_GREY = ("1", "L", "LA", "La", *_SIXTEEN_BIT)
_BROKEN_SHARE = 0.01
_NAMED = 3  # broken images named in a message
_CHUNK = 128  # images a task


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


@dataclass(frozen=True)
class _Header:
    size: tuple[int, int]  # width, height
    grey: bool


def decode_images(root: str, paths: Sequence[str], image_size: int | None) -> Decoded:
    """Decode the images ``root/path``.

    All grey (8 or 16 bits, with or without alpha): one channel; otherwise three, RGB. Alpha is dropped, 16-bit values
    are scaled to 8, of an animation the first frame is taken, and an orientation noted in EXIF is not applied.

    Args:
        root: The folder that ``paths`` are relative to.
        paths: At least one.
        image_size: Side of the square to which the centre square of each image is resized (bilinear, antialiased);
            ``None``: as they are if all have one size, else 224.

    Raises:
        DataError: More than 1 % of the images are broken, or they do not fit in memory.
    """
    broken: dict[int, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # on odd metadata: of no consequence
        headers = _in_threads(lambda i: _attempt(_read_header, os.path.join(root, paths[i])), range(len(paths)))
        broken.update((i, found) for i, found in enumerate(headers) if isinstance(found, str))
        _check_broken(root, paths, broken)
        good = {i: found for i, found in enumerate(headers) if isinstance(found, _Header)}
        (width, height), note = _target_size({header.size for header in good.values()}, image_size)
        channels = 1 if all(header.grey for header in good.values()) else 3
        require_memory(f"folder {shown(root)}", (len(paths), channels, height, width))
        pixels = np.empty((len(paths), channels, height, width), dtype=np.uint8)

        def decode(i: int) -> str | None:
            return _attempt(lambda path: _decode_into(pixels[i], path), os.path.join(root, paths[i]))

        for i, trouble in zip(good, _in_threads(decode, list(good)), strict=True):
            if trouble is not None:
                broken[i] = trouble
    _check_broken(root, paths, broken)
    notes = [note] if note else []
    images, kept = torch.from_numpy(pixels), torch.arange(len(paths))
    if broken:
        notes.append(f"{counted(len(broken), 'image')} skipped, unreadable: {_listed(paths, broken)}")
        kept = torch.tensor([i for i in range(len(paths)) if i not in broken], dtype=torch.int64)
        images = images[kept]
    return Decoded(images, kept, tuple(notes))


def counted(number: int, noun: str) -> str:
    """``"1 image"``, ``"2 images"``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def shown(path: str) -> str:
    """A path that can be printed, whatever bytes are in it."""
    return os.fsencode(path).decode("utf-8", "replace")


def _target_size(sizes: set[tuple[int, int]], image_size: int | None) -> tuple[tuple[int, int], str | None]:
    if image_size is not None:
        return (image_size, image_size), None
    if len(sizes) == 1:
        return next(iter(sizes)), None
    note = f"images of {len(sizes):,} sizes: shorter side resized to {MIXED_SIZE}, centre square cropped"
    return (MIXED_SIZE, MIXED_SIZE), note


def _check_broken(root: str, paths: Sequence[str], broken: dict[int, str]) -> None:
    if len(broken) > _BROKEN_SHARE * len(paths):
        raise DataError(
            f"folder {shown(root)}",
            f"must have at most {_BROKEN_SHARE:.0%} of images that cannot be read",
            value=f"{len(broken):,} of {len(paths):,}: {_listed(paths, broken)}",
            remedy="repair or remove them",
        )


def _listed(paths: Sequence[str], broken: dict[int, str]) -> str:
    first = [f"{shown(paths[i])} ({broken[i]})" for i in sorted(broken)[:_NAMED]]
    return ", ".join(first) + (", ..." if len(broken) > _NAMED else "")


def _in_threads(work: Callable[[In], Out], items: Sequence[In]) -> list[Out]:
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(chain.from_iterable(pool.map(lambda chunk: [work(item) for item in chunk], chunks)))


def _attempt(work: Callable[[str], Out], path: str) -> Out | str:
    """What ``work`` makes of the file, or in a few words why it cannot be read."""
    try:
        mode = os.stat(path)
        if not stat.S_ISREG(mode.st_mode):  # opening a pipe would wait for ever
            return "not a file"
        return "empty" if mode.st_size == 0 else work(path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    except UnidentifiedImageError:
        return "not an image"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except Exception as error:  # a decoder that meets a broken file may raise anything
        return f"{type(error).__name__}: {error}"


def _read_header(path: str) -> _Header:
    with Image.open(path, formats=_FORMATS) as image:
        return _Header(image.size, image.mode in _GREY)


def _decode_into(out: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], path: str) -> None:
    """Fill ``out``, (C, H, W), with the image."""
    channels, height, width = out.shape
    with Image.open(path, formats=_FORMATS) as opened:
        image = _eight_bit(opened, "L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR, box=_centre_square(*image.size))
    out[:] = np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def _eight_bit(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("float pixels, whose range is unknown")
    elif image.mode == "P":
        image = image.convert("RGBA")  # directly to RGB, Pillow warns of transparency it would lose
    return image.convert(mode)


def _centre_square(width: int, height: int) -> tuple[float, float, float, float]:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side
