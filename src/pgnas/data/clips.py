"""Clips as folders of frames: ``root/<class>/<clip>/<frame>``, or train/ and test/ (or val/) of such."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pgnas.data.fetching import Files
from pgnas.data.folder import cut, disk_augmentation
from pgnas.data.inspection import Inspection, broken_skipped, counted, inspect_images, shown
from pgnas.data.packed import PackedPaths
from pgnas.data.pipelines import Pipeline
from pgnas.data.scanning import ClassFiles, class_files
from pgnas.data.sources import RawData, Request, choice, register_path, whole
from pgnas.data.streaming import StreamedSplit
from pgnas.errors import DataError

_FRAMES = 16
_LEAST_AREA = 0.4


@dataclass(frozen=True, eq=False)
class _Clips:
    """Clips, those of train first.

    Attributes:
        paths: Of all frames, clip by clip in the order in which they are shown.
        starts: (M + 1,) int64: the frames of clip i are ``starts[i]`` to ``starts[i + 1]``, without the last.
        labels: (M,) int64.
        counts: How many of them are train, test and validation.
    """

    paths: list[str]
    starts: np.ndarray[tuple[int], np.dtype[np.int64]]
    labels: Tensor
    counts: tuple[int, int, int]


@register_path(
    "clips",
    "clips:PATH, clips as <class>/<clip>/<frame>, or train/ and test/ (or val/) of such, read while training; options "
    f"frames=T (of each clip; {_FRAMES}), broken=skip",
    frames=whole(1, 1024),
    broken=choice(skip=True, refuse=False),
)
def read_clips(request: Request) -> RawData:
    """Read clips; an example is (C, T, H, W).

    T frames are taken of each clip, one of each of T equal segments: any in training, the middle one in evaluation. A
    clip of fewer frames repeats some. Frames are sorted by name, numbers in it by value. Mirroring, which makes "left
    to right" of "right to left", is done with ``--augment on`` alone.

    Args:
        request: The folder; option ``frames``: T; ``image_size``: side of the square that frames are resized to;
            ``None``: as they are if all have one size, else 224.

    Raises:
        DataError: As for ``read_folder``, or frames lie outside a clip's folder, or differ in size within a clip.
    """
    found = class_files(request.path)
    clips = _grouped(request.path, found)
    headers = inspect_images(request.path, clips.paths, whole=True)
    skip = bool(request.options.get("broken"))
    notes = broken_skipped(request.path, clips.paths, headers.broken, skip=skip, kind="clips")
    good = torch.tensor(_good_clips(request.path, clips, headers), dtype=torch.int64)
    if not len(good):
        raise DataError(f"folder {shown(request.path)}", "must hold readable clips", value="none", remedy="check it")
    (width, height), note = headers.target_size(request.image_size)
    stored = {header.size for header in headers.good.values()} == {(width, height)}
    files = Files(
        request.path,
        PackedPaths(clips.paths),
        clips.starts,
        request.options.get("frames", _FRAMES),
        Pipeline(headers.channels, height, width, as_stored=stored),
        skip_broken=skip,
    )
    train, test, validation = cut(StreamedSplit(files, good, clips.labels[good]), good, clips.counts)
    notes = [*([note] if note else []), *notes, f"{counted(len(good), 'clip')} read from disk while they are used"]
    return RawData(
        found.class_names,
        train,
        test,
        flip=None,
        notes=(*found.notes, *notes),
        validation=validation,
        augmentation=partial(disk_augmentation, min(height, width), False, _LEAST_AREA),
    )


def _grouped(root: str, found: ClassFiles) -> _Clips:
    """Frames by folder.

    Raises:
        DataError: Frames lie in a class folder itself.
    """
    folders: dict[str, list[int]] = {}
    for i, path in enumerate(found.paths):
        folders.setdefault(os.path.dirname(path), []).append(i)
    paths: list[str] = []
    starts = [0]
    for folder, members in folders.items():
        if folder.count(os.sep) <= found.depth:
            value, remedy = shown(found.paths[members[0]]), "move them to <class>/<clip>/<frame>"
            raise DataError(f"folder {shown(root)}", "must have a folder for each clip", value=value, remedy=remedy)
        paths += sorted((found.paths[i] for i in members), key=_by_number)
        starts.append(len(paths))
    first = [members[0] for members in folders.values()]
    which = torch.bucketize(torch.tensor(first), torch.tensor(found.counts).cumsum(0), right=True)
    train, test, validation = which.bincount(minlength=3).tolist()
    return _Clips(paths, np.array(starts, dtype=np.int64), found.labels[first], (train, test, validation))


def _good_clips(root: str, clips: _Clips, headers: Inspection) -> list[int]:
    """The clips of which every frame is good.

    Raises:
        DataError: The frames of one differ in size.
    """
    good = []
    for clip, (start, end) in enumerate(zip(clips.starts[:-1].tolist(), clips.starts[1:].tolist(), strict=True)):
        if any(i in headers.broken for i in range(start, end)):
            continue
        sizes = {headers.good[i].size for i in range(start, end)}
        if len(sizes) > 1:
            subject = f"clip {shown(os.path.join(root, os.path.dirname(clips.paths[start])))}"
            found = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
            raise DataError(subject, "must have frames of one size", value=found, remedy="extract them again")
        good.append(clip)
    return good


def _by_number(path: str) -> list[tuple[int, str]]:
    """Sorts frame 2 before frame 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path)]
