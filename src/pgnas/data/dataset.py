"""What a loaded data set is: four splits, and what must be done to an image before a network sees it.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgnas.data.augmentation import Augmentation
from pgnas.errors import DataError

_STD_FLOOR = 1 / 255  # one grey level: constant images must not divide by zero
_CHUNK = 1024  # images at a time, to bound temporary memory
_PIXELS_HASHED = 32  # of every image


@dataclass(frozen=True)
class Preprocessing:
    """What an image must go through before the network: this shape, then ``(value / 255 - mean) / std``.

    Attributes:
        channels: C; 1 for grey, 3 for RGB.
        height: H in pixels.
        width: W in pixels.
        mean: Of each channel over the training images, with pixel values scaled to 0..1.
        std: Likewise; never below 1/255.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.channels:
            found = f"{len(self.mean)} means and {len(self.std)} stds for {self.channels} channels"
            raise DataError("preprocessing", "needs one mean and one std a channel", value=found, remedy="give as many")

    @classmethod
    def of(cls, images: Tensor) -> Preprocessing:
        """The shape, mean and (population) standard deviation of ``images``, (N, C, H, W) uint8."""
        count, channels, height, width = images.shape
        total = torch.zeros(channels, dtype=torch.int64)
        squares = torch.zeros(channels, dtype=torch.int64)
        for chunk in torch.split(images, _CHUNK):  # integer sums: exact, whatever the number of images
            wide = chunk.to(torch.int32)
            total += wide.sum(dim=(0, 2, 3))
            squares += wide.square_().sum(dim=(0, 2, 3))
        pixels = count * height * width
        mean = total.double() / (255 * pixels)
        variance = squares.double() / (255**2 * pixels) - mean.square()
        std = variance.clamp_min(0).sqrt().clamp_min(_STD_FLOOR)
        return cls(channels, height, width, tuple(mean.tolist()), tuple(std.tolist()))

    def normalise(self, images_u8: Tensor) -> Tensor:
        """Images as the network takes them.

        Args:
            images_u8: (N, C, H, W) uint8.

        Returns:
            (N, C, H, W) float32 on the same device.

        Raises:
            DataError: The images are not uint8 or have another shape.
        """
        expected = (self.channels, self.height, self.width)
        if images_u8.dtype != torch.uint8 or tuple(images_u8.shape[1:]) != expected:
            raise DataError(
                "images",
                f"must be uint8 of shape (N, {', '.join(map(str, expected))})",
                value=f"{images_u8.dtype} of shape {tuple(images_u8.shape)}",
                remedy="resize them and leave the scaling to normalise",
            )
        mean = torch.tensor(self.mean, device=images_u8.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images_u8.device).view(-1, 1, 1)
        return images_u8.to(torch.float32).sub_(mean * 255).div_(std * 255)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """The inverse of ``to_dict``.

        Raises:
            DataError: A field is missing or of another type.
        """
        try:
            channels, height, width = (int(fields[name]) for name in ("channels", "height", "width"))
            mean, std = (tuple(float(value) for value in fields[name]) for name in ("mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            rule = "must hold channels, height, width, mean and std"
            raise DataError("preprocessing", rule, value=repr(error), remedy="write it with to_dict") from error
        return cls(channels, height, width, mean, std)


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, in 0..number of classes - 1.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        good = images.dtype == torch.uint8 and images.ndim == 4
        if not good or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            found = f"{images.dtype} {tuple(images.shape)} and {labels.dtype} {tuple(labels.shape)}"
            rule = "needs images (N, C, H, W) uint8 and labels (N,) int64"
            raise DataError("split", rule, value=found, remedy="convert them first")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Split:
        """The images at ``indices``, (M,) int64, as a copy."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set, split.

    Attributes:
        name: What the user called it.
        class_names: Name of each label.
        train: What the weights and the posterior are fitted to.
        select: Half of the validation images; the selection among architectures sees them.
        estimate: The other half; no selection ever sees them, so that they give an honest estimate.
        test: For the last line of a report only.
        preprocessing: Shape, mean and standard deviation of the training images.
        augmentation: What to do to training images.
        notes: What was decided or skipped on the way, one sentence each.
        fingerprint: SHA-256 of the contents of the splits; see ``fingerprint_of``.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    select: Split
    estimate: Split
    test: Split
    preprocessing: Preprocessing
    augmentation: Augmentation
    notes: tuple[str, ...]
    fingerprint: str


def fingerprint_of(class_names: Iterable[str], splits: Iterable[Split]) -> str:
    """SHA-256 of the class names, and of all labels and some 32 or more pixels of every image, split by split."""
    digest = hashlib.sha256(repr(tuple(class_names)).encode())
    for split in splits:
        # odd, so that successive images of even size give different pixels
        stride = max(1, split.images[:1].numel() // _PIXELS_HASHED) | 1
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.labels.cpu().numpy().tobytes())
        digest.update(split.images.reshape(-1)[::stride].cpu().numpy().tobytes())
    return digest.hexdigest()
