"""The digits of scikit-learn: part of the package, so there is nothing to download."""

from __future__ import annotations

from importlib import import_module

import torch

from pgnas.data.resizing import resized
from pgnas.data.sources import RawData, register
from pgnas.data.splits import Split
from pgnas.errors import DataError

_LEVELS = 16  # of grey, in the original


@register("digits", "1,797 handwritten digits, 1x8x8, 10 classes; comes with scikit-learn, no download")
def read_digits(image_size: int | None) -> RawData:
    """Read scikit-learn's digits, their 0..16 scaled to 0..255."""
    try:
        datasets = import_module("sklearn.datasets")
    except ImportError as error:
        remedy = "pip install scikit-learn"
        raise DataError("data 'digits'", "needs scikit-learn", value=str(error), remedy=remedy) from error
    bunch = datasets.load_digits()
    pixels = torch.from_numpy(bunch.images).mul(255 / _LEVELS).round().to(torch.uint8)
    images = resized(pixels.unsqueeze(1), image_size)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    return RawData(tuple(map(str, range(10))), Split(images, labels), None, flip=False)
