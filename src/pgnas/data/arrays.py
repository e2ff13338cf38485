"""A ``.npz`` file with x_train, y_train and, if it has a test split of its own, x_test and y_test."""

from __future__ import annotations

import zipfile
import zlib
from typing import Any

import numpy as np
import torch

from pgnas.data.dataset import Split
from pgnas.data.memory import require_memory
from pgnas.data.resizing import resized
from pgnas.data.sources import RawData
from pgnas.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]
_CHUNK = 1024  # images at a time, to bound temporary memory


def read_npz(path: str, image_size: int | None) -> RawData:
    """Read images and labels; an array that only ``pickle`` could read is refused.

    Images: (N, H, W), (N, H, W, C) or (N, C, H, W); integers in 0..255, or floats in 0..1, which are scaled. The
    channels are the axis of 1 or 3 entries, or else the shorter one. Labels: (N,) integers or strings; the classes
    are the sorted labels of train.

    Args:
        path: The file.
        image_size: Side of the square that images are resized to; ``None``: as they are.

    Raises:
        DataError: The file or an array in it is not as described.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            keys = {name.removesuffix(".npy") for name in archive.namelist()}
            _check_keys(path, keys)
            raw_train = _array(archive, path, "y_train")
            names, labels = np.unique(_labels(path, "y_train", raw_train), return_inverse=True)
            train = _split(archive, path, "x_train", labels, image_size)
            test = None
            if "x_test" in keys:
                test_labels = _test_labels(path, names, _labels(path, "y_test", _array(archive, path, "y_test")))
                test = _split(archive, path, "x_test", test_labels, image_size)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        remedy = "write it with numpy.savez"
        raise DataError(f"file {path}", "must be a readable .npz file", value=str(error), remedy=remedy) from error
    if test is not None and test.images.shape[1:] != train.images.shape[1:]:
        found = f"{tuple(train.images.shape[1:])} and {tuple(test.images.shape[1:])}"
        rule = "must hold training and test images of one shape"
        raise DataError(f"file {path}", rule, value=found, remedy="resize them with --image-size")
    flip = True if train.images.shape[1] == 3 else None  # grey images are often signs, digits or letters
    return RawData(tuple(str(name) for name in names), train, test, flip=flip)


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
    _header(archive, path, key)
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


def _split(archive: zipfile.ZipFile, path: str, key: str, labels: Array, image_size: int | None) -> Split:
    shape, dtype = _header(archive, path, key)
    axis = _channel_axis(path, key, shape)
    if shape[0] != len(labels):
        raise _fail(path, key, f"must hold one image for each of {len(labels)} labels", shape[0], "drop the surplus")
    channels = 1 if axis is None else shape[axis]
    height, width = (size for i, size in enumerate(shape) if i not in (0, axis))
    # counted in bytes of the stored type: the whole array is read before it is converted
    require_memory(f"array {key} of {path}", (shape[0], channels, height, width * dtype.itemsize))
    pixels = _array(archive, path, key)
    whole = pixels[:, None] if axis is None else np.moveaxis(pixels, axis, 1)
    out = np.empty(whole.shape, dtype=np.uint8)
    for start in range(0, len(whole), _CHUNK):
        out[start : start + _CHUNK] = _eight_bit(path, key, whole[start : start + _CHUNK])
    return Split(resized(torch.from_numpy(out), image_size), torch.from_numpy(labels.astype(np.int64)))


def _channel_axis(path: str, key: str, shape: tuple[int, ...]) -> int | None:
    if len(shape) not in (3, 4) or 0 in shape:
        rule = "must be images (N, H, W), (N, H, W, C) or (N, C, H, W)"
        raise _fail(path, key, rule, f"shape {shape}", "reshape them")
    if len(shape) == 3:
        return None
    first, last = shape[1], shape[3]
    usual = [axis for axis in (1, 3) if shape[axis] in (1, 3)]
    if len(usual) == 1:
        return usual[0]
    if usual or first == last:
        rule = "must show which axis is channels"
        raise _fail(path, key, rule, f"shape {shape}", "store grey images as (N, H, W), others with 3 channels")
    return 1 if first < last else 3


def _eight_bit(path: str, key: str, pixels: Array) -> Array:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind not in "iuf":
        raise _fail(path, key, "must be numbers", pixels.dtype, "store uint8 in 0..255")
    top = 1 if pixels.dtype.kind == "f" else 255
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= top):  # NaN fails too
        remedy = "store uint8 in 0..255"
        raise _fail(path, key, f"must lie in 0..{top} ({pixels.dtype})", f"{low}..{high}", remedy)
    scaled: Array = (pixels * (255 / top)).round().astype(np.uint8)
    return scaled
