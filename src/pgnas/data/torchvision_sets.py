"""CIFAR-10, CIFAR-100 and Fashion-MNIST through torchvision, downloaded once into a cache folder.

torchvision reads CIFAR with ``pickle``, but only files whose MD5 it has checked against the published ones.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgnas.data.filling import filled_by_one
from pgnas.data.resizing import resized
from pgnas.data.sources import RawData, register
from pgnas.data.splits import Split
from pgnas.errors import DataError


@register("cifar10", "60,000 photographs, 3x32x32, 10 classes; downloaded (170 MB)")
def read_cifar10(image_size: int | None) -> RawData:
    """Read CIFAR-10, 50,000 training and 10,000 test images."""
    return _read("cifar10", "CIFAR10", image_size)


@register("cifar100", "60,000 photographs, 3x32x32, 100 classes; downloaded (170 MB)")
def read_cifar100(image_size: int | None) -> RawData:
    """Read CIFAR-100, 50,000 training and 10,000 test images."""
    return _read("cifar100", "CIFAR100", image_size)


@register("fashion-mnist", "70,000 pictures of clothes, 1x28x28, 10 classes; downloaded (30 MB)")
def read_fashion_mnist(image_size: int | None) -> RawData:
    """Read Fashion-MNIST, 60,000 training and 10,000 test images."""
    return _read("fashion-mnist", "FashionMNIST", image_size)


def cache_folder() -> Path:
    """Where downloads are kept: ``$PGNAS_HOME/data``, by default ``~/.cache/pgnas/data``."""
    home = os.environ.get("PGNAS_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "pgnas") / "data"


def _read(name: str, kind: str, image_size: int | None) -> RawData:
    folder = cache_folder()
    try:
        build = getattr(import_module("torchvision.datasets"), kind)
    except ImportError as error:
        remedy = "pip install torchvision"
        raise DataError(f"data {name!r}", "needs torchvision", value=str(error), remedy=remedy) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filled_by_one(folder):
            train, test = (build(root=str(folder), train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError, EOFError, ValueError) as error:  # no network, no space, a broken archive
        rule = f"must be in {folder} or be downloaded there"
        remedy = f"check the network or remove {folder} and try again"
        raise DataError(f"data {name!r}", rule, value=str(error) or type(error).__name__, remedy=remedy) from error
    names = tuple(str(label) for label in train.classes)
    return RawData(names, _split(train, image_size), _split(test, image_size))


def _split(dataset: Any, image_size: int | None) -> Split:
    return Split(
        resized(_channels_first(torch.as_tensor(dataset.data)), image_size),
        torch.as_tensor(dataset.targets).to(torch.int64),
    )


def _channels_first(pixels: Tensor) -> Tensor:
    """(N, H, W) or (N, H, W, C) uint8 to (N, C, H, W)."""
    return pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
