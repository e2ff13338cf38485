"""Quarter turns about the vertical, mirroring and shifts of a whole batch of volumes at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pgnas.errors import DataError

VERTICAL = 2
"""The axis of (D, H, W) that is up unless told otherwise: the last, as z in a grid indexed by x, y, z."""


@dataclass(frozen=True, eq=False)
class VolumeDraws:
    """The random numbers of one batch of N volumes; ``None`` where the augmentation is off.

    Attributes:
        turns: (N,) int64, quarter turns in 0..3.
        mirrored: (N,) bool.
        offset: (N, 3) int64, first voxel of the crop in the padded volume along D, H and W, in 0..2 shift.
    """

    turns: Tensor | None
    mirrored: Tensor | None
    offset: Tensor | None

    def share(self, start: int, step: int) -> VolumeDraws:
        """The draws of volumes ``start``, ``start + step``, ..."""
        parts = (self.turns, self.mirrored, self.offset)
        return VolumeDraws(*(None if part is None else part[start::step] for part in parts))


@dataclass(frozen=True)
class VolumeAugmentation:
    """Turns about the vertical, a mirror image and a shift, in this order; voxels move, none is interpolated.

    As for VoxNet (Maturana & Scherer, 2015), but with quarter turns, which keep a grid exact, in place of twelfths.

        noisy = VolumeAugmentation(turn=True, shift=2)(volumes, generator=generator)

    Attributes:
        turn: By 0, 90, 180 or 270 degrees; by 0 or 180 where the two horizontal sides differ.
        flip: Mirror every other volume, in the mean, along a horizontal axis.
        shift: Largest shift in voxels along each axis; what comes in is 0.
        up: The vertical axis: 0, 1, 2 for D, H, W.
    """

    turn: bool = False
    flip: bool = False
    shift: int = 0
    up: int = VERTICAL

    def __post_init__(self) -> None:
        if self.shift < 0:
            rule = "must be 0 or more voxels"
            raise DataError("augmentation shift", rule, value=self.shift, remedy="use 0 for none")
        if self.up not in (0, 1, 2):
            raise DataError("vertical axis", "must be 0, 1 or 2 (D, H or W)", value=self.up, remedy="choose one")

    @property
    def is_identity(self) -> bool:
        """Whether volumes come out as they went in."""
        return not (self.turn or self.flip or self.shift)

    def __call__(self, volumes: Tensor, *, generator: torch.Generator) -> Tensor:
        """Augmented copies of ``volumes``, (N, C, D, H, W) of any number type."""
        return self.of_batch(volumes, count=len(volumes), start=0, step=1, generator=generator)

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
        """Augmented copies of the volumes at ``start``, ``start + step``, ... of a batch of ``count``.

        ``fill`` is not needed: there is no hole.
        """
        return self.apply(images, self._draw(count, generator).share(start, step))

    def apply(self, volumes: Tensor, draws: VolumeDraws) -> Tensor:
        """What ``draws`` makes of ``volumes``, (N, C, D, H, W); they are left as they are.

        Raises:
            DataError: The volumes are images.
        """
        if volumes.ndim != 5:
            found = f"shape {tuple(volumes.shape)}"
            rule = "must be volumes (N, C, D, H, W)"
            raise DataError("examples to turn", rule, value=found, remedy="use Augmentation for images")
        first, second = (2 + axis for axis in range(3) if axis != self.up)
        out = volumes
        if draws.turns is not None:
            out = _turned(out, draws.turns.to(out.device), (first, second))
        if draws.mirrored is not None:
            out = torch.where(draws.mirrored.to(out.device).view(-1, 1, 1, 1, 1), out.flip(first), out)
        if draws.offset is not None:
            out = _shifted(out, draws.offset.to(out.device), self.shift)
        return volumes.clone() if out is volumes else out

    def _draw(self, count: int, generator: torch.Generator) -> VolumeDraws:
        def below(bound: int, *shape: int) -> Tensor:
            return torch.randint(bound, (count, *shape), generator=generator, device=generator.device)

        turns = below(4) if self.turn else None
        mirrored = below(2).bool() if self.flip else None
        offset = below(2 * self.shift + 1, 3) if self.shift else None
        return VolumeDraws(turns, mirrored, offset)


def _turned(volumes: Tensor, turns: Tensor, plane: tuple[int, int]) -> Tensor:
    square = volumes.shape[plane[0]] == volumes.shape[plane[1]]
    out = volumes.clone()
    for turn in (1, 2, 3) if square else (2,):
        chosen = turns == turn if square else turns % 2 == 1
        out[chosen] = torch.rot90(volumes[chosen], turn, plane)
    return out


def _shifted(volumes: Tensor, offset: Tensor, shift: int) -> Tensor:
    windows = F.pad(volumes, (shift,) * 6)
    for axis, size in enumerate(volumes.shape[2:], start=2):
        windows = windows.unfold(axis, size, 1)  # a view (N, C, 2 shift + 1, ..., D, H, W)
    index = torch.arange(len(volumes), device=volumes.device)
    return windows[index, :, offset[:, 0], offset[:, 1], offset[:, 2]]
