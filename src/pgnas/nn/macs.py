"""Multiply-adds (MACs) of convolutions and linear layers, from the shapes of what they read and make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
ConvTranspose = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Counted = Conv | ConvTranspose | nn.Linear


def macs_per_pair(layer: Counted, read: Sequence[int], made: Sequence[int]) -> int:
    """Multiply-adds of one (input, output) channel pair within a group.

    Args:
        layer: The layer.
        read: Shape of its input.
        made: Shape of its output.
    """
    if isinstance(layer, nn.Linear):
        return math.prod(made) // layer.out_features
    # A transposed convolution multiplies each position of its input by the whole kernel.
    is_transposed = isinstance(layer, ConvTranspose)
    positions = math.prod(read) // layer.in_channels if is_transposed else math.prod(made) // layer.out_channels
    return positions * math.prod(layer.kernel_size)


def layer_macs(layer: nn.Module, read: Sequence[int], made: Sequence[int]) -> int:
    """Multiply-adds of a whole layer; 0 for a layer that is neither a convolution nor linear."""
    if isinstance(layer, nn.Linear):
        return macs_per_pair(layer, read, made) * layer.in_features * layer.out_features
    if isinstance(layer, Conv | ConvTranspose):
        return macs_per_pair(layer, read, made) * layer.in_channels * layer.out_channels // layer.groups
    return 0


@contextmanager
def watch_macs(module: nn.Module, tell: Callable[[int], None]) -> Iterator[None]:
    """While this lasts, ``tell`` hears the multiply-adds of every convolution and linear layer that runs."""

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        read = args[0] if args else kwargs["input"]
        tell(layer_macs(layer, tuple(read.shape), tuple(output.shape)))

    handles = [
        layer.register_forward_hook(hook, with_kwargs=True) for layer in module.modules() if isinstance(layer, Counted)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
