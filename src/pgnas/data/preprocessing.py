"""What must be done to an image, a volume or a clip before a network sees it.

Shapes: N examples, C channels, D slices or frames, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgnas.errors import DataError

_STD_FLOOR = 1 / 255  # one grey level: constant images must not divide by zero
_CHUNK = 2**23  # values at a time, to bound temporary memory


@dataclass(frozen=True)
class Preprocessing:
    """What an example must go through before the network: this shape, then ``(value / 255 - mean) / std``.

    Attributes:
        channels: C; 1 for grey, 3 for RGB.
        height: H in pixels.
        width: W in pixels.
        mean: Of each channel over the training examples, with values scaled to 0..1.
        std: Likewise; never below 1/255.
        depth: D, slices of a volume or frames of a clip; ``None``: images.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    depth: int | None = None

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.channels:
            found = f"{len(self.mean)} means and {len(self.std)} stds for {self.channels} channels"
            raise DataError("preprocessing", "needs one mean and one std a channel", value=found, remedy="give as many")

    @classmethod
    def of(cls, images: Tensor) -> Preprocessing:
        """The shape, mean and (population) standard deviation of ``images``, (N, C, [D,] H, W) uint8."""
        return cls.of_parts(torch.split(images, max(1, _CHUNK // images[0].numel())))

    @classmethod
    def of_parts(cls, parts: Iterable[Tensor]) -> Preprocessing:
        """Likewise of examples that come in parts, (n, C, [D,] H, W) uint8 each; at least one."""
        sums: list[Tensor] = []
        pixels, shape = 0, torch.Size()
        for part in parts:
            wide, shape = part.to(torch.int32), part.shape[1:]
            inner = (0, *range(2, part.ndim))
            sums.append(torch.stack([wide.sum(dim=inner), wide.square_().sum(dim=inner)]))  # of integers: exact
            pixels += part.numel() // part.shape[1]
        total, squares = torch.stack(sums).sum(dim=0).double()
        mean = total / (255 * pixels)
        variance = squares / (255**2 * pixels) - mean.square()
        std = variance.clamp_min(0).sqrt().clamp_min(_STD_FLOOR)
        return cls.for_size(shape[0], list(shape[1:]), tuple(mean.tolist()), tuple(std.tolist()))

    @classmethod
    def for_size(
        cls, channels: int, size: tuple[int, ...] | list[int], mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Preprocessing:
        """For examples of ``size``: (H, W) or (D, H, W)."""
        *depth, height, width = size
        return cls(channels, height, width, mean, std, depth[0] if depth else None)

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W), or (D, H, W) of volumes and clips."""
        return (self.height, self.width) if self.depth is None else (self.depth, self.height, self.width)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W), or (C, D, H, W) of volumes and clips."""
        return (self.channels, *self.size)

    def normalise(self, images_u8: Tensor) -> Tensor:
        """Examples as the network takes them.

        Args:
            images_u8: (N, C, [D,] H, W) uint8.

        Returns:
            The same shape, float32, in the same memory format, on the same device.

        Raises:
            DataError: The examples are not uint8 or have another shape.
        """
        if images_u8.dtype != torch.uint8 or tuple(images_u8.shape[1:]) != self.shape:
            raise DataError(
                "images",
                f"must be uint8 of shape (N, {', '.join(map(str, self.shape))})",
                value=f"{images_u8.dtype} of shape {tuple(images_u8.shape)}",
                remedy="resize them and leave the scaling to normalise",
            )
        one_each = (-1, *(1 for _ in self.size))
        mean = torch.tensor(self.mean, device=images_u8.device).view(one_each)
        std = torch.tensor(self.std, device=images_u8.device).view(one_each)
        return images_u8.to(torch.float32).sub_(mean * 255).div_(std * 255)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; ``depth`` only where there is one."""
        fields = {
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        return fields if self.depth is None else {**fields, "depth": self.depth}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """The inverse of ``to_dict``.

        Raises:
            DataError: A field is missing or of another type.
        """
        try:
            channels, height, width = (int(fields[name]) for name in ("channels", "height", "width"))
            mean, std = (tuple(float(value) for value in fields[name]) for name in ("mean", "std"))
            depth = int(fields["depth"]) if fields.get("depth") is not None else None
        except (KeyError, TypeError, ValueError) as error:
            rule = "must hold channels, height, width, mean and std"
            raise DataError("preprocessing", rule, value=repr(error), remedy="write it with to_dict") from error
        return cls(channels, height, width, mean, std, depth)
