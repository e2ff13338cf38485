"""From what the user wrote after ``--data`` to a split data set."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

from pgnas.data.augmentation import Augmentation
from pgnas.data.dataset import DataSet
from pgnas.data.pipelines import ResizedCrop
from pgnas.data.sources import Augment, RawData, require_two_classes
from pgnas.data.specs import resolve
from pgnas.data.splits import AnyAugmentation, Examples, fingerprint_of
from pgnas.data.splitting import TEST_SHARE, halves, split_indices
from pgnas.errors import DataError

_LARGEST_SIDE = 8192
_SMALLEST_CROPPED = 4  # pixels; below, a crop could lose what the image shows


def load_data(
    spec: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    data_seed: int = 0,
    augment: Augment = "auto",
    cutout: int | None = None,
    streamed: bool | None = None,
) -> DataSet:
    """Read a data set and split it into train, select, estimate and test.

        data = load_data("digits")
        data = load_data("photos/", image_size=64, data_seed=1)

    A source's own validation split, or else 10 % of the training images of each class, is validation, half ``select``
    and half ``estimate``; a source without a test split gives up 20 % of each class first. The splits depend on the
    data and ``data_seed`` alone.

    Args:
        spec: A registered name, a folder of images (``root/<class>/*``, or ``root/train/<class>/*`` beside
            ``root/test/<class>/*`` and maybe ``root/val/<class>/*``), a ``.npz`` file (``x_train``, ``y_train``,
            ``x_test``, ``y_test``), or ``kind:PATH:option=value,...`` of a registered kind. A name wins over a folder
            of that name; write ``./name`` for the folder.
        image_size: Side in pixels of the square to which images are resized; ``None``: as they are, or 224 for a
            folder of images of mixed sizes.
        data_seed: Seed of the splits.
        augment: ``"auto"``: a random crop (padding: an eighth of the side) everywhere and a flip where it keeps the
            class: not for digits, nor for a ``.npz`` of other than three channels. ``"on"``: these, a flip unless it
            is known to be wrong (digits), and a cutout of half the side (16 at 32x32, the paper's). ``"off"``: none.
        cutout: Side in pixels of the hole in training images; 0: none; ``None``: as ``augment`` says.
        streamed: Whether a folder of images is read while training, unless ``spec`` says so with its option
            ``stream``; ``None``: if it does not fit in memory.

    Raises:
        DataError: The data cannot be found, read, split or held in memory.
    """
    if image_size is not None and not 1 <= image_size <= _LARGEST_SIDE:
        rule = f"must lie in [1, {_LARGEST_SIDE}]"
        raise DataError("--image-size", rule, value=image_size, remedy="choose a value inside")
    spec = os.fspath(spec)
    source, request = resolve(spec, image_size)
    if streamed is not None and source.name == "folder":
        request = replace(request, options={"stream": streamed, **request.options})
    raw = source.read(request)
    _check_classes(spec, raw)
    notes = list(raw.notes)
    train, select, estimate, test = _splits(raw, data_seed)
    if raw.test is None:
        notes.append(f"no test split: a stratified {TEST_SHARE:.0%} became one ({len(test):,} images)")
    augmentation = raw.augmentation or partial(_augmentation, train.shape[1:], raw.flip)
    return DataSet(
        name=spec,
        class_names=raw.class_names,
        train=train,
        select=select.read_often(),
        estimate=estimate.read_often(),
        test=test,
        preprocessing=train.measured(),
        augmentation=_with_cutout(spec, augmentation(augment), cutout),
        notes=tuple(notes),
        fingerprint=fingerprint_of(raw.class_names, (train, select, estimate, test)),
    )


def _splits(raw: RawData, data_seed: int) -> tuple[Examples, Examples, Examples, Examples]:
    if raw.validation is not None and raw.test is not None:
        select, estimate = halves(raw.validation.labels, len(raw.class_names), data_seed)
        return raw.train, raw.validation.take(select), raw.validation.take(estimate), raw.test
    chosen = split_indices(raw.train.labels, raw.class_names, cut_test=raw.test is None, data_seed=data_seed)
    train, select_half, estimate_half = (raw.train.take(i) for i in (chosen.train, chosen.select, chosen.estimate))
    return train, select_half, estimate_half, raw.train.take(chosen.test) if raw.test is None else raw.test


def _augmentation(size: tuple[int, ...], flip: bool | None, augment: Augment) -> Augmentation:
    side = min(size)
    if augment == "off":
        return Augmentation()
    crop = max(1, side // 8) if side >= _SMALLEST_CROPPED else 0
    if augment == "auto":
        return Augmentation(crop=crop, flip=flip is True)
    return Augmentation(crop=crop, flip=flip is not False, cutout=side // 2)


def _with_cutout(spec: str, augmentation: AnyAugmentation, cutout: int | None) -> AnyAugmentation:
    if cutout is None:
        return augmentation
    remedy = "leave --cutout out"
    if isinstance(augmentation, ResizedCrop) and augmentation.off:
        raise DataError("--cutout", "needs --augment auto or on for images read from disk", value="off", remedy=remedy)
    if isinstance(augmentation, Augmentation | ResizedCrop):
        return replace(augmentation, cutout=cutout)
    if cutout:
        raise DataError("--cutout", "is for images", value=f"the volumes of {spec}", remedy=remedy)
    return augmentation


def _check_classes(spec: str, raw: RawData) -> None:
    require_two_classes(f"data {spec!r}", raw.class_names)
    if raw.test is not None and len(raw.test) == 0:
        raise DataError(f"data {spec!r}", "has an empty test split", remedy="add test images or remove the split")
