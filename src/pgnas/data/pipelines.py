"""torchvision's standard pipelines: from the files of one example to its pixels, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pgnas.data.augmentation import Augmentation
from pgnas.data.decoding import open_image
from pgnas.data.inspection import attempt
from pgnas.errors import DataError
from pgnas.seeds import derive_seed

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
_SHORTER_SIDE = 256 / 224  # of the image before the centre crop, as torchvision evaluates ImageNet


class UnreadableError(Exception):
    """An image cannot be decoded; pgnas turns it into a ``DataError`` or leaves the image out."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason


@dataclass(frozen=True)
class ResizedCrop:
    """The training pipeline of examples that are read from disk: a random part of the image, resized, maybe mirrored.

    A part of a share of the area uniform in [``least_area``, 1] and of an aspect ratio in [3/4, 4/3] is resized to the
    size wanted (Szegedy et al., 2015; ``torchvision.transforms.v2.RandomResizedCrop``). All frames of a clip share the
    draws.

    Attributes:
        least_area: In (0, 1]; 0.08 is ImageNet's.
        flip: Mirror every other example, in the mean.
        cutout: Side in pixels of a square hole, as in ``Augmentation``; 0: none.
        off: Do nothing of this: examples as for evaluation.
    """

    least_area: float = 0.08
    flip: bool = True
    cutout: int = 0
    off: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.least_area <= 1:
            raise DataError("least area of a crop", "must lie in (0, 1]", value=self.least_area, remedy="use 0.08")

    @property
    def is_identity(self) -> bool:
        """Whether examples come out as for evaluation."""
        return self.off


@dataclass(frozen=True)
class Pipeline:
    """From images as they are stored to pixels of one size.

    Attributes:
        channels: 1 (grey) or 3 (RGB); grey images become three equal channels.
        height: In pixels.
        width: In pixels; equal to ``height`` unless the images are stored in this size.
        as_stored: The images are stored in this size: for evaluation they are taken as they are.
    """

    channels: int
    height: int
    width: int
    as_stored: bool

    def evaluation(self, paths: Sequence[str]) -> Pixels:
        """The images as they are evaluated: shorter side resized to 256/224 of the size, centre crop.

        Returns:
            (frames, H, W, C).
        """
        images = self._opened(paths)
        if self.as_stored:
            return self._pixels(images)
        v2 = import_module("torchvision.transforms.v2")
        shorter = round(self.height * _SHORTER_SIDE)
        return self._pixels(v2.Compose([v2.Resize(shorter), v2.CenterCrop((self.height, self.width))])(images))

    def training(self, paths: Sequence[str], augmentation: ResizedCrop, seed: int, fill: Tensor) -> Pixels:
        """The images with an augmentation that depends on ``seed`` alone; all frames share it.

        Returns:
            (frames, H, W, C).
        """
        v2 = import_module("torchvision.transforms.v2")
        steps = [v2.RandomResizedCrop((self.height, self.width), scale=(augmentation.least_area, 1.0))]
        if augmentation.flip:
            steps.append(v2.RandomHorizontalFlip())
        images = self._opened(paths)
        before = torch.get_rng_state()
        try:
            torch.default_generator.manual_seed(seed)  # torchvision draws from it; the GPUs' generators stay out of it
            pixels = self._pixels(v2.Compose(steps)(images))
        finally:
            torch.set_rng_state(before)
        return _with_hole(pixels, augmentation.cutout, derive_seed(seed, "cutout"), fill)

    def _opened(self, paths: Sequence[str]) -> list[Image.Image]:
        images = []
        for path in paths:
            image = attempt(lambda name: open_image(name, "L" if self.channels == 1 else "RGB"), path)
            if isinstance(image, str):
                raise UnreadableError(path, image)
            if self.as_stored and image.size != (self.width, self.height):
                raise UnreadableError(path, f"{image.width}x{image.height} pixels, unlike at the start")
            images.append(image)
        return images

    def _pixels(self, images: Sequence[Image.Image]) -> Pixels:
        frames = [np.asarray(image).reshape(self.height, self.width, self.channels) for image in images]
        return np.stack(frames)


def _with_hole(pixels: Pixels, side: int, seed: int, fill: Tensor) -> Pixels:
    if side == 0:
        return pixels
    frames = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    one = frames.reshape(1, -1, *frames.shape[2:])  # the frames of a clip as channels of one image: one hole for all
    generator = torch.Generator().manual_seed(seed)
    holed = Augmentation(cutout=side)(one, generator=generator, fill=fill.repeat(len(frames)))
    return holed.reshape(frames.shape).permute(0, 2, 3, 1).numpy()
