"""Images without labels, one by one or in folders, made into what a network was trained on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pgnas.data.decoding import EXTENSIONS, decode_into
from pgnas.data.inspection import attempt, in_threads, inspect_images, listed, quiet_pillow, shown
from pgnas.data.memory import require_memory
from pgnas.data.pipelines import Pipeline, Pixels, UnreadableError
from pgnas.data.preprocessing import Preprocessing
from pgnas.data.splits import Examples
from pgnas.data.streaming import StreamedSplit
from pgnas.errors import DataError


def image_files(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """The images that are named: files as they are, of folders all images in them and below, sorted by path.

    What begins with a dot is left out of folders, as in a data set.

    Raises:
        DataError: A path does not exist, a folder holds no image, nothing is named, or what is named is no path.
    """
    found: list[str] = []
    for path in map(_path, [given] if isinstance(given, str | os.PathLike) else given):
        if not os.path.isdir(path):
            if not os.path.exists(path):
                raise DataError(f"image {shown(path)}", "must exist", value="no such file", remedy="check the path")
            found.append(path)
            continue
        images = sorted(name for name in _inside(path) if name.lower().endswith(EXTENSIONS))
        if not images:
            remedy = f"name a folder with {', '.join(EXTENSIONS)} files"
            raise DataError(f"folder {shown(path)}", "must hold images", value="none", remedy=remedy)
        found += images
    if not found:
        raise DataError("images", "must be named", value="none", remedy="give image files, or folders of them")
    return found


def _path(given: object) -> str:
    if isinstance(given, str | os.PathLike):
        return os.fsdecode(given)
    raise DataError("images", "must be paths of files and folders", value=type(given).__name__, remedy="name files")


def _inside(path: str) -> Iterator[str]:
    for folder, below, names in os.walk(path):
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (os.path.join(folder, name) for name in names if not name.startswith("."))


def read_images(paths: Sequence[str], preprocessing: Preprocessing, *, cropped: bool = False) -> Tensor:
    """Images as a network takes them before normalising, (N, C, H, W) uint8.

    Args:
        paths: Image files, at least one.
        preprocessing: The shape wanted.
        cropped: Resize the shorter side and crop, as images that are read from disk are evaluated; otherwise the centre
            box of the network's aspect ratio is resized, as images in memory are.

    Raises:
        DataError: An image cannot be read to its end, or they are not images that the network takes, or too many.
    """
    if preprocessing.depth is not None:
        raise DataError(
            "images", "must be what the network takes", value="volumes or clips wanted", remedy="use Python"
        )
    channels, height, width = preprocessing.shape
    if channels not in (1, 3):
        value = f"{channels} channels wanted, files of images have 1 or 3"
        raise DataError("images", "must be what the network takes", value=value, remedy="use Python")
    broken = inspect_images("", paths).broken
    _refuse(paths, broken)
    require_memory("images", (len(paths), channels, height, width))
    pixels = np.empty((len(paths), channels, height, width), dtype=np.uint8)
    pipeline = Pipeline(channels, height, width, as_stored=False)

    def cropping(out: Pixels, path: str) -> None:
        try:
            out[:] = pipeline.evaluation([path])[0].transpose(2, 0, 1)
        except UnreadableError as error:
            raise OSError(error.reason) from error

    fill: Callable[[Pixels, str], None] = cropping if cropped else decode_into
    with quiet_pillow():
        troubles = in_threads(lambda i: attempt(lambda path: fill(pixels[i], path), paths[i]), range(len(paths)))
    _refuse(paths, {i: trouble for i, trouble in enumerate(troubles) if trouble is not None})
    return torch.from_numpy(pixels)


def evaluates_a_crop(split: Examples) -> bool:
    """Whether images of this split are evaluated by resizing the shorter side and cropping; see :func:`read_images`."""
    return isinstance(split, StreamedSplit) and not split.files.pipeline.as_stored


def _refuse(paths: Sequence[str], broken: dict[int, str]) -> None:
    if broken:
        value = f"{len(broken):,} of {len(paths):,}: {listed(paths, broken)}"
        raise DataError("images", "must be readable to their end", value=value, remedy="repair or leave them out")
