"""A small network around a layer, in which every channel that the layer reads can be closed by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pgnas.errors import ModelError

_CONVOLUTIONS: dict[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_OUTPUTS = 3
MOST_INPUTS = 3
_FEEDERS = 2  # channels of the stem that feed one channel of the layer's input


class Surrounding(nn.Module):
    """stem, then for each input of the layer one gated layer a channel; then the layer; then gated readers.

    One reader reads what the layer made; one reads each of the layer's inputs past it, so that values are shared and
    have to be picked from.

    Args:
        layer: The layer.
        examples: Its example inputs, (B, C, ...) or, channels last, (B, ..., C).
        made: What it makes of them.
        last: Whether the channels are the last axis of the inputs.
    """

    def __init__(self, layer: nn.Module, examples: Sequence[Tensor], made: Tensor, *, last: bool) -> None:
        super().__init__()
        self.layer = layer
        self.axes = [_channel_axis(x, last=last) for x in examples]
        widths = [x.shape[axis] for x, axis in zip(examples, self.axes, strict=True)]
        self.stems = nn.ModuleList(
            mixing(x, width, _FEEDERS * width, last=last) for x, width in zip(examples, widths, strict=True)
        )
        self.feeders = nn.ModuleList(
            nn.ModuleList(mixing(x, _FEEDERS, 1, last=last) for _ in range(width))
            for x, width in zip(examples, widths, strict=True)
        )
        self.past = nn.ModuleList(
            mixing(x, width, _OUTPUTS, last=last) for x, width in zip(examples, widths, strict=True)
        )
        channels = made.shape[_channel_axis(made, last=last)]
        self.reader = mixing(made, channels, _OUTPUTS, last=last)

    # No *inputs: torch.fx takes them for one value.
    def forward(self, first: Tensor, second: Tensor | None = None, third: Tensor | None = None) -> tuple[Tensor, ...]:
        """What the readers make, one tensor each."""
        inputs = [x for x in (first, second, third) if x is not None]
        read = [self._feed(place, x) for place, x in enumerate(inputs)]
        past = [reader(x) for reader, x in zip(self.past, read, strict=True)]
        return self.reader(self.layer(*read)), *past

    def _feed(self, place: int, x: Tensor) -> Tensor:
        axis = self.axes[place]
        stem = self.stems[place](x)
        parts = stem.split(_FEEDERS, axis)
        feeders: nn.ModuleList = self.feeders[place]  # type: ignore[assignment]
        return torch.cat([feeder(part) for feeder, part in zip(feeders, parts, strict=True)], axis)


def mixing(example: Tensor, inputs: int, outputs: int, *, last: bool) -> nn.Module:
    """A pointwise convolution or a linear layer for values like ``example``.

    Raises:
        ModelError: No layer of torch.nn mixes the channels of such values.
    """
    if example.ndim == 2 or last:
        return nn.Linear(inputs, outputs)
    kind = _CONVOLUTIONS.get(example.ndim)
    if kind is None:
        raise ModelError(
            "example",
            "must be (B, C), (B, C, L), (B, C, H, W), (B, C, D, H, W), or (B, ..., C) with channels_last=True",
            value=tuple(example.shape),
            remedy="check the layer on one of these",
        )
    return kind(inputs, outputs, 1)


def _channel_axis(x: Tensor, *, last: bool) -> int:
    return x.ndim - 1 if last else 1
