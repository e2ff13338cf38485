"""A folder of images, ``root/<class>/*`` or ``root/train/<class>/*`` beside ``root/test/<class>/*``, and ImageNet."""

from __future__ import annotations

import os
from functools import partial
from importlib import import_module
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pgnas.data.decoding import decode_images
from pgnas.data.fetching import Files
from pgnas.data.filling import filled_by_one
from pgnas.data.inspection import Inspection, broken_skipped, counted, inspect_images, require_readable, shown
from pgnas.data.memory import fits_in_memory
from pgnas.data.packed import PackedPaths
from pgnas.data.pipelines import Pipeline, ResizedCrop
from pgnas.data.scanning import ClassFiles, class_files
from pgnas.data.sources import Augment, RawData, Request, choice, register_path
from pgnas.data.splits import Examples, Split
from pgnas.data.streaming import StreamedSplit
from pgnas.errors import DataError

AnyExamples = TypeVar("AnyExamples", bound=Examples)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_SIZE = 224
_ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")
_BROKEN = choice(skip=True, refuse=False)


@register_path(
    "folder",
    "folder:PATH, images as <class>/<image>, or train/ and test/ (or val/) of such; options broken=skip, stream=on or "
    "off: read them while training (not given: when they do not fit in memory)",
    stream=choice(on=True, off=False),
    broken=_BROKEN,
)
def read_folder(request: Request) -> RawData:
    """Read the images below a folder; see ``class_files``.

    No image may be broken, unless ``broken=skip``: then those are left out and noted.

    Args:
        request: The folder; ``image_size``: side of the square that images are resized to; ``None``: as they are if
            all have one size, else 224.

    Raises:
        DataError: No images, test classes that train does not have, or broken images.
    """
    found = class_files(request.path)
    stream = request.options.get("stream")
    headers = None if stream else inspect_images(request.path, found.paths)
    if headers is None or (stream is None and not _fits(request, headers, len(found.paths))):
        return _streamed(request, found)
    decoded = decode_images(request.path, found.paths, request.image_size, headers, skip_broken=_skips(request))
    everything = Split(decoded.images, found.labels[decoded.kept])
    train, test, validation = cut(everything, decoded.kept, found.counts)
    return RawData(found.class_names, train, test, notes=(*found.notes, *decoded.notes), validation=validation)


@register_path(
    "imagenet",
    "imagenet:PATH, train/ and val/ of class folders or ImageNet's archives, read while training with ImageNet's "
    "pipelines; option broken=skip",
    broken=_BROKEN,
)
def read_imagenet(request: Request) -> RawData:
    """ImageNet, or what is laid out like it: ``val`` is the test split, 224 pixels, ImageNet's mean and deviation.

    Where there are only the archives, ``torchvision.datasets.ImageNet`` unpacks them beside themselves, once.

    Raises:
        DataError: There is neither ``train/`` nor the archives, or as for ``read_folder``.
    """
    if not os.path.isdir(os.path.join(request.path, "train")):
        _unpack(request.path)
    found = class_files(request.path)
    sized = Request(request.image_size or IMAGENET_SIZE, request.path, request.options)
    return _streamed(sized, found, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def disk_augmentation(side: int, flip: bool, least_area: float, augment: Augment) -> ResizedCrop:
    """What ``--augment`` means for examples that are read from disk: ``on`` adds a cutout of half the side."""
    if augment == "off":
        return ResizedCrop(off=True)
    on = augment == "on"
    return ResizedCrop(least_area, flip=flip or on, cutout=side // 2 if on else 0)


def cut(
    everything: AnyExamples, kept: Tensor, counts: tuple[int, int, int]
) -> tuple[AnyExamples, AnyExamples | None, AnyExamples | None]:
    """Train, test and validation; ``None`` for a split that the source does not have.

    Args:
        everything: (M,) examples, those of train first, then test, then validation.
        kept: (M,) int64, increasing: which these are of all that were found.
        counts: How many of all are train, test and validation.
    """
    ends = torch.tensor(counts).cumsum(0)
    which = torch.bucketize(kept, ends, right=True)
    train, test, validation = (everything.take((which == i).nonzero().flatten()) for i in range(3))
    return train, test if counts[1] else None, validation if counts[2] else None


def _skips(request: Request) -> bool:
    return bool(request.options.get("broken"))


def _fits(request: Request, headers: Inspection, count: int) -> bool:
    if not headers.good:
        return True  # that all are broken is said where they are decoded
    (width, height), _ = headers.target_size(request.image_size)
    return fits_in_memory((count, headers.channels, height, width))


def _streamed(
    request: Request, found: ClassFiles, *, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> RawData:
    headers = inspect_images(request.path, found.paths, whole=True)
    notes = broken_skipped(
        request.path, found.paths, headers.broken, skip=_skips(request), kind="imagenet" if mean else "folder"
    )
    require_readable(request.path, len(headers.good))
    (width, height), note = headers.target_size(request.image_size)
    stored = {header.size for header in headers.good.values()} == {(width, height)}
    channels = 3 if mean else headers.channels
    count = len(found.paths)
    files = Files(
        request.path,
        PackedPaths(found.paths),
        np.arange(count + 1),
        None,
        Pipeline(channels, height, width, as_stored=stored),
        skip_broken=_skips(request),
        mean=mean,
        std=std,
    )
    good = torch.tensor(sorted(headers.good), dtype=torch.int64)
    everything = StreamedSplit(files, good, found.labels[good])
    train, test, validation = cut(everything, good, found.counts)
    notes = [*([note] if note else []), *notes, f"{counted(len(good), 'image')} read from disk while they are used"]
    return RawData(
        found.class_names,
        train,
        test,
        notes=(*found.notes, *notes),
        validation=validation,
        augmentation=partial(disk_augmentation, min(height, width), True, 0.08),
    )


def _unpack(root: str) -> None:
    missing = [name for name in _ARCHIVES if not os.path.isfile(os.path.join(root, name))]
    if missing:
        rule = "must hold train/ and val/ of class folders, or ImageNet's archives"
        raise DataError(f"folder {shown(root)}", rule, value=f"no train/, no {missing[0]}", remedy="check the path")
    try:
        datasets = import_module("torchvision.datasets")
        with filled_by_one(root):
            for split in ("train", "val"):
                datasets.ImageNet(root, split=split)
    except (ImportError, OSError, RuntimeError, EOFError, ValueError) as error:  # no space, a broken archive
        remedy = "check the archives and the space left, remove what was unpacked and try again"
        raise DataError(f"archives in {shown(root)}", "must unpack", value=error, remedy=remedy) from error
