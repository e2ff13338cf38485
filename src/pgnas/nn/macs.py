"""Multiply-adds (MACs) of convolutions and linear layers, from the shapes of what they read and make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pgnas.nn.functional_layers import LayerCalls, is_transposed

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
ConvTranspose = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Counted = Conv | ConvTranspose | nn.Linear


def layer_macs(layer: nn.Module, read: Sequence[int], made: Sequence[int]) -> int:
    """Multiply-adds of a whole layer; 0 for a layer that is neither a convolution nor linear.

    Args:
        layer: The layer.
        read: Shape of its input.
        made: Shape of its output.
    """
    if isinstance(layer, nn.Linear):
        return math.prod(made) * layer.in_features
    if isinstance(layer, ConvTranspose):  # multiplies each number of its input by whole kernels
        return math.prod(read) * layer.out_channels // layer.groups * math.prod(layer.kernel_size)
    if isinstance(layer, Conv):
        return math.prod(made) * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    return 0


@contextmanager
def watch_macs(module: nn.Module, tell: Callable[[int], None]) -> Iterator[None]:
    """While this lasts, ``tell`` hears the multiply-adds of every convolution and linear layer that runs.

    They are those of the functions that are called, by layers or by others. A layer of ``module`` that calls none
    (it multiplies by other means) counts as its type does.
    """
    heard, heard_before = 0, dict[nn.Module, int]()

    def hear(function: Any, read: Tensor, weight: Tensor, made: Tensor) -> None:
        nonlocal heard
        heard += 1
        numbers = read.numel() if is_transposed(function) else made.numel()
        tell(numbers * math.prod(weight.shape[1:] if weight.ndim > 1 else weight.shape))

    def enter(layer: nn.Module, args: tuple[Any, ...]) -> None:
        heard_before[layer] = heard

    def leave(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if heard_before[layer] == heard:
            read = args[0] if args else kwargs["input"]
            tell(layer_macs(layer, tuple(read.shape), tuple(output.shape)))

    layers = [layer for layer in module.modules() if isinstance(layer, Counted)]
    handles = [layer.register_forward_pre_hook(enter) for layer in layers]
    handles += [layer.register_forward_hook(leave, with_kwargs=True) for layer in layers]
    try:
        with LayerCalls(hear):
            yield
    finally:
        for handle in handles:
            handle.remove()
