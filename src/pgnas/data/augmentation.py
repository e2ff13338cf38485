"""Random crop, horizontal flip and cutout of a whole batch at once, without a loop over images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pgnas.errors import DataError


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of one batch of N images; ``None`` where the augmentation is off.

    Attributes:
        top: (N,) int64, first row of the crop in the padded image, in 0..2 crop.
        left: (N,) int64, likewise its first column.
        mirrored: (N,) bool.
        hole_row: (N,) int64, row of the centre of the hole.
        hole_column: (N,) int64, likewise its column.
    """

    top: Tensor | None
    left: Tensor | None
    mirrored: Tensor | None
    hole_row: Tensor | None
    hole_column: Tensor | None

    def share(self, start: int, step: int) -> Draws:
        """The draws of images ``start``, ``start + step``, ..."""
        parts = (self.top, self.left, self.mirrored, self.hole_row, self.hole_column)
        return Draws(*(None if part is None else part[start::step] for part in parts))


@dataclass(frozen=True)
class Augmentation:
    """A random crop after zero padding, a horizontal flip and a square hole, in this order.

        noisy = Augmentation(crop=4, flip=True)(images, generator=generator)

    Attributes:
        crop: Pixels of black padding on each side from which a crop of the old size is taken; 0: none.
        flip: Mirror every other image, in the mean.
        cutout: Side in pixels of a square hole (DeVries & Taylor, 2017), its centre uniform over the image, its
            part outside the image lost; 0: none, the default of every data set (16 at 32x32 in the paper).
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        for name in ("crop", "cutout"):
            if getattr(self, name) < 0:
                value, remedy = getattr(self, name), "use 0 for none"
                raise DataError(f"augmentation {name}", "must be 0 or more pixels", value=value, remedy=remedy)

    @property
    def is_identity(self) -> bool:
        """Whether images come out as they went in."""
        return not (self.crop or self.flip or self.cutout)

    def __call__(self, images: Tensor, *, generator: torch.Generator, fill: Tensor | None = None) -> Tensor:
        """Augmented copies of ``images``, (N, C, H, W) of any number type; see ``apply`` for ``fill``."""
        count, _, height, width = images.shape
        return self.apply(images, self.draw(count, height, width, generator=generator), fill=fill)

    def of_batch(
        self,
        images: Tensor,
        *,
        count: int,
        start: int,
        step: int,
        generator: torch.Generator,
        fill: Tensor | None = None,
    ) -> Tensor:
        """Augmented copies of the images at ``start``, ``start + step``, ... of a batch of ``count``.

        The draws are made for the whole batch, so that an image's noise does not depend on who holds the others.
        """
        height, width = images.shape[2:]
        draws = self.draw(count, height, width, generator=generator)
        return self.apply(images, draws.share(start, step), fill=fill)

    def draw(self, count: int, height: int, width: int, *, generator: torch.Generator) -> Draws:
        """The random numbers for ``count`` images of ``height`` x ``width``."""

        def below(bound: int) -> Tensor:
            return torch.randint(bound, (count,), generator=generator, device=generator.device)

        top, left = (below(2 * self.crop + 1), below(2 * self.crop + 1)) if self.crop else (None, None)
        mirrored = below(2).bool() if self.flip else None
        row, column = (below(height), below(width)) if self.cutout else (None, None)
        return Draws(top, left, mirrored, row, column)

    def apply(self, images: Tensor, draws: Draws, *, fill: Tensor | None = None) -> Tensor:
        """What ``draws`` makes of ``images``, (N, C, H, W).

        Args:
            images: (N, C, H, W); left as they are.
            draws: Of ``draw``, for as many images.
            fill: (C,) value of the pixels in the hole; ``None``: 0. The training mean leaves 0 after normalisation,
                as in the original cutout.

        Returns:
            (N, C, H, W) of the same number type, in new memory.
        """
        out = images
        if draws.top is not None and draws.left is not None:
            out = _crop(out, draws.top.to(out.device), draws.left.to(out.device), pad=self.crop)
        if draws.mirrored is not None:
            out = torch.where(draws.mirrored.to(out.device).view(-1, 1, 1, 1), out.flip(3), out)
        if draws.hole_row is not None and draws.hole_column is not None:
            hole = _hole(out, draws.hole_row.to(out.device), draws.hole_column.to(out.device), side=self.cutout)
            colour = out.new_zeros(1) if fill is None else fill.to(out)
            out = torch.where(hole, colour.view(-1, 1, 1), out)
        return images.clone() if out is images else out


def _crop(images: Tensor, top: Tensor, left: Tensor, *, pad: int) -> Tensor:
    height, width = images.shape[2:]
    padded = F.pad(images, (pad, pad, pad, pad))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view (N, C, 2 pad + 1, 2 pad + 1, H, W)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def _hole(images: Tensor, row: Tensor, column: Tensor, *, side: int) -> Tensor:
    """(N, 1, H, W) bool: rows and columns in [centre - side // 2, centre - side // 2 + side)."""
    height, width = images.shape[2:]

    def covered(size: int, centre: Tensor) -> Tensor:
        offset = torch.arange(size, device=images.device) - (centre - side // 2).view(-1, 1)
        return (offset >= 0) & (offset < side)

    return (covered(height, row).unsqueeze(2) & covered(width, column).unsqueeze(1)).unsqueeze(1)
