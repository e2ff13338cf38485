"""A ``.npz`` file of images or volumes: x_train, y_train and, if it has a test split of its own, x_test and y_test."""

from __future__ import annotations

import math
import zipfile
import zlib
from functools import partial
from typing import Any

import numpy as np
import torch

from pgnas.data.memory import fits_in_memory, require_memory
from pgnas.data.resizing import resized
from pgnas.data.sources import Augment, RawData, Request, choice, register_path
from pgnas.data.splits import Split
from pgnas.data.volumes import VERTICAL, VolumeAugmentation
from pgnas.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]
_CHUNK = 1024  # images at a time, to bound temporary memory
_MANY_CHANNELS = 4  # of pictures; more are unusual enough to be told


@register_path(
    "npz",
    "npz:PATH, a .npz file of images or volumes (x_train, y_train, x_test, y_test); option up=D, H or W: the vertical",
    up=choice(D=0, H=1, W=2),
)
def read_npz(request: Request) -> RawData:
    """Read images or volumes and labels; an array that only ``pickle`` could read is refused.

    Images: (N, H, W), (N, H, W, C) or (N, C, H, W). The channels are the axis of 1 or 3 entries, or else the shorter
    one. Volumes: (N, C, D, H, W), or (N, D, H, W) with D = H = W. Integers in 0..255, or floats in 0..1, which are
    scaled, as are volumes of integers 0 and 1; volumes of one value throughout show nothing and are left out. Labels:
    (N,) integers or strings; the classes are the sorted labels of train, named by the strings ``classes`` if they are
    numbers and it is there.

    Args:
        request: The file; ``image_size``: side of the square (cube) that images (volumes) are resized to.

    Raises:
        DataError: The file or an array in it is not as described.
    """
    path = request.path
    try:
        with zipfile.ZipFile(path) as archive:
            keys = {name.removesuffix(".npy") for name in archive.namelist()}
            _check_keys(path, keys)
            raw_train = _array(archive, path, "y_train")
            names, labels = np.unique(_labels(path, "y_train", raw_train), return_inverse=True)
            class_names = _class_names(path, names, _array(archive, path, "classes") if "classes" in keys else None)
            train, top = _split(archive, path, "x_train", labels, request.image_size)
            kind = _kind(_header(archive, path, "x_train")[1])
            test = None
            if "x_test" in keys:
                numbers = _header(archive, path, "x_test")[1]
                if _kind(numbers) != kind:  # 1 is white in one and nearly black in the other
                    rule = f"must hold the same type of numbers as x_train, {kind}"
                    raise _fail(path, "x_test", rule, numbers, "store both as uint8 in 0..255")
                test_labels = _test_labels(path, names, _labels(path, "y_test", _array(archive, path, "y_test")))
                test, _ = _split(archive, path, "x_test", test_labels, request.image_size, top=top)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        remedy = "write it with numpy.savez"
        raise DataError(f"file {path}", "must be a readable .npz file", value=str(error), remedy=remedy) from error
    if test is not None and test.shape != train.shape:
        found = f"{train.shape} and {test.shape}"
        rule = "must hold training and test images of one shape"
        raise DataError(f"file {path}", rule, value=found, remedy="resize them with --image-size")
    if len(train.shape) == 4:
        return _volumes(class_names, train, test, **request.options)
    if request.options:
        rule, remedy = "must hold volumes for option up to mean something", "leave the option out"
        raise DataError(f"file {path}", rule, value=f"images {train.shape}", remedy=remedy)
    flip = True if train.shape[0] == 3 else None  # grey images are often signs, digits or letters
    notes = []
    if train.shape[0] > _MANY_CHANNELS:
        note = f"x_train was read as images of {train.shape[0]} channels; volumes that are no cubes are (N, 1, D, H, W)"
        notes.append(note)
    return RawData(class_names, train, test, flip=flip, notes=tuple(notes))


def _volumes(class_names: tuple[str, ...], train: Split, test: Split | None, *, up: int = VERTICAL) -> RawData:
    notes = []
    splits = [train] if test is None else [train, test]
    for i, (name, split) in enumerate(zip(("training", "test"), splits, strict=False)):
        flat = split.images.flatten(1)
        shows = (flat != flat[:, :1]).any(dim=1)
        if not shows.all():
            notes.append(f"{int((~shows).sum()):,} {name} volumes left out: of one value throughout")
            splits[i] = split.take(shows.nonzero().flatten())
    kept_test = splits[1] if test is not None else None
    augmentation = partial(_volume_augmentation, min(train.shape[1:]), up)
    return RawData(class_names, splits[0], kept_test, flip=None, notes=tuple(notes), augmentation=augmentation)


def _volume_augmentation(side: int, up: int, augment: Augment) -> VolumeAugmentation:
    """Turns and shifts of a sixteenth of the side (2 of 32 voxels, as for VoxNet); mirroring may change a class."""
    if augment == "off":
        return VolumeAugmentation(up=up)
    return VolumeAugmentation(turn=True, flip=augment == "on", shift=side // 16, up=up)


def _class_names(path: str, labels: Array, classes: Array | None) -> tuple[str, ...]:
    if classes is None or labels.dtype.kind not in "iu":
        return tuple(map(str, labels))
    if classes.ndim != 1 or classes.dtype.kind != "U" or labels.max(initial=0) >= len(classes):
        found = f"{classes.dtype} of shape {classes.shape}"
        rule = f"must be strings, one for each label up to {labels.max(initial=0)}"
        raise _fail(path, "classes", rule, found, "name every class or leave the array out")
    names = tuple(str(classes[label]) for label in labels)
    if len(set(names)) < len(names):
        raise _fail(path, "classes", "must differ from each other", ", ".join(names[:5]), "rename them")
    return names


def _check_keys(path: str, keys: set[str]) -> None:
    missing = {"x_train", "y_train"} - keys
    if len({"x_test", "y_test"} & keys) == 1:
        missing |= {"x_test", "y_test"} - keys
    if missing:
        rule = f"must hold {' and '.join(sorted(missing))}"
        found = ", ".join(sorted(keys)[:8]) or "no arrays"
        raise DataError(f"file {path}", rule, value=found, remedy="add or rename the arrays")


def _fail(path: str, key: str, rule: str, value: object, remedy: str) -> DataError:
    return DataError(f"array {key} of {path}", rule, value=value, remedy=remedy)


def _header(archive: zipfile.ZipFile, path: str, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and number type, without reading the array: it may be larger than memory."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with archive.open(f"{key}.npy") as member:
            shape, _, dtype = read[np.lib.format.read_magic(member)](member)
    except (ValueError, KeyError) as error:
        raise _fail(path, key, "must be a numpy array", str(error), "write it with numpy.savez") from error
    if dtype.hasobject:
        remedy = "convert it to numbers; pgnas never runs pickle"
        raise _fail(path, key, "must not need pickle to be read", "Python objects", remedy)
    return shape, dtype


def _array(archive: zipfile.ZipFile, path: str, key: str) -> Array:
    shape, dtype = _header(archive, path, key)
    amount = math.prod(shape) * dtype.itemsize
    if amount > archive.getinfo(f"{key}.npy").file_size:  # numpy would make room for what the header promises
        found = f"fewer bytes than the {amount:,} of shape {shape}"
        raise _fail(path, key, "must be a whole numpy array", found, "write the file again")
    if not fits_in_memory((amount,)):
        raise _fail(path, key, "must fit in about half of the available memory", f"shape {shape}", "use fewer examples")
    try:
        with archive.open(f"{key}.npy") as member:
            array: Array = np.lib.format.read_array(member, allow_pickle=False)
            return array
    except ValueError as error:
        raise _fail(path, key, "must be a whole numpy array", str(error), "write the file again") from error


def _labels(path: str, key: str, labels: Array) -> Array:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iubU":
        found = f"{labels.dtype} of shape {labels.shape}"
        raise _fail(path, key, "must be (N,) integers or strings", found, "give one class number an image")
    if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
        raise _fail(path, key, "must not be negative", labels.min(), "remove unlabelled images")
    return labels


def _test_labels(path: str, names: Array, labels: Array) -> Array:
    unknown = sorted({str(label) for label in np.unique(labels)} - {str(name) for name in names})
    if unknown:
        rule = "must not have classes that y_train does not have"
        raise _fail(path, "y_test", rule, ", ".join(unknown[:5]), "add training images of them or remove them")
    number = {str(name): label for label, name in enumerate(names)}
    return np.array([number[str(label)] for label in labels], dtype=np.int64)


def _split(
    archive: zipfile.ZipFile, path: str, key: str, labels: Array, image_size: int | None, *, top: int | None = None
) -> tuple[Split, int]:
    """The images of ``key`` with ``labels``, and the value that became 255, which is found if it is not given."""
    shape, dtype = _header(archive, path, key)
    axis = _channel_axis(path, key, shape)
    if shape[0] != len(labels):
        raise _fail(path, key, f"must hold one image for each of {len(labels)} labels", shape[0], "drop the surplus")
    channels = 1 if axis is None else shape[axis]
    *sizes, width = (size for i, size in enumerate(shape) if i not in (0, axis))
    # counted in bytes of the stored type: the whole array is read before it is converted
    remedy = "use fewer images, or a folder of image files, which is read while it trains"
    require_memory(f"array {key} of {path}", (shape[0], channels, *sizes, width * dtype.itemsize), remedy=remedy)
    pixels = _array(archive, path, key)
    whole = pixels[:, None] if axis is None else np.moveaxis(pixels, axis, 1)
    top = _top(whole) if top is None else top
    out = np.empty(whole.shape, dtype=np.uint8)
    for start in range(0, len(whole), _CHUNK):
        out[start : start + _CHUNK] = _eight_bit(path, key, whole[start : start + _CHUNK], top)
    return Split(resized(torch.from_numpy(out), image_size), torch.from_numpy(labels.astype(np.int64))), top


def _kind(dtype: np.dtype[Any]) -> str:
    kinds = {"b": "truth values", "i": "whole numbers", "u": "whole numbers", "f": "fractions"}
    return kinds.get(dtype.kind, str(dtype))


def _channel_axis(path: str, key: str, shape: tuple[int, ...]) -> int | None:
    if len(shape) not in (3, 4, 5) or 0 in shape:
        rule = "must be images (N, H, W), (N, H, W, C) or (N, C, H, W) or volumes (N, D, H, W) or (N, C, D, H, W)"
        raise _fail(path, key, rule, f"shape {shape}", "reshape them")
    if len(shape) == 3:
        return None
    first, last = shape[1], shape[-1]
    if len(shape) == 5:
        if last in (1, 3) and first not in (1, 3):
            rule = "must have the channels of volumes first, (N, C, D, H, W)"
            raise _fail(path, key, rule, f"shape {shape}", "move the last axis there")
        return 1
    usual = [axis for axis in (1, 3) if shape[axis] in (1, 3)]
    if len(usual) == 1:
        return usual[0]
    if not usual and first == shape[2] == last:
        return None
    if usual or first == last:
        rule = "must show which axis is channels"
        remedy = "store grey images as (N, H, W), others with 3 channels, volumes as (N, 1, D, H, W)"
        raise _fail(path, key, rule, f"shape {shape}", remedy)
    return 1 if first < last else 3


def _top(pixels: Array) -> int:
    """The value that becomes 255: 1 of floats and of volumes that only say where something is."""
    occupied = pixels.ndim == 5 and pixels.dtype.kind in "iu" and pixels.max(initial=0) <= 1
    return 1 if pixels.dtype.kind == "f" or occupied else 255


def _eight_bit(path: str, key: str, pixels: Array, top: int) -> Array:
    if pixels.dtype == np.uint8 and top == 255:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind not in "iuf":
        raise _fail(path, key, "must be numbers", pixels.dtype, "store uint8 in 0..255")
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= top):  # NaN fails too
        remedy = "store uint8 in 0..255"
        raise _fail(path, key, f"must lie in 0..{top} ({pixels.dtype})", f"{low}..{high}", remedy)
    scaled: Array = (pixels * (255 / top)).round().astype(np.uint8)
    return scaled
