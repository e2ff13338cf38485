"""Multiply-adds (MACs) of convolutions, linear and recurrent layers and matrix products, from the shapes they see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from pgnas.nn.functional_layers import LayerCalls, is_transposed

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
ConvTranspose = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Counted = Conv | ConvTranspose | nn.Linear
Recurrent = nn.RNNBase | nn.RNNCellBase

_PRODUCTS = frozenset(
    {
        *(getattr(owner, name) for owner in (torch, Tensor) for name in ("matmul", "mm", "bmm", "addmm", "baddbmm")),
        *(Tensor.__matmul__, Tensor.__rmatmul__, torch.addbmm, Tensor.addbmm),
        *(torch.einsum, torch.tensordot, torch.chain_matmul, torch.linalg.matmul, torch.linalg.multi_dot),
        *(F.scaled_dot_product_attention, F.multi_head_attention_forward),
    }
)


def layer_macs(layer: nn.Module, read: Sequence[int], made: Sequence[int]) -> int:
    """Multiply-adds of a whole layer; 0 for a layer that is not a convolution, linear, bilinear or recurrent.

    Args:
        layer: The layer.
        read: Shape of its (first) input; of a packed sequence that of its data.
        made: Shape of its output; of a recurrent layer any.
    """
    if isinstance(layer, nn.Bilinear):
        return math.prod(made[:-1]) * layer.weight.numel()
    if isinstance(layer, Recurrent):  # every matrix once a step of every example, the gates' own products left out
        matrices = sum(p.numel() for name, p in layer.named_parameters() if name.startswith("weight"))
        return math.prod(read[:-1]) * matrices
    if isinstance(layer, nn.Linear):
        return math.prod(made) * layer.in_features
    if isinstance(layer, ConvTranspose):  # multiplies each number of its input by whole kernels
        return math.prod(read) * layer.out_channels // layer.groups * math.prod(layer.kernel_size)
    if isinstance(layer, Conv):
        return math.prod(made) * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    return 0


@contextmanager
def watch_macs(module: nn.Module, tell: Callable[[int], None]) -> Iterator[None]:
    """While this lasts, ``tell`` hears the multiply-adds of all convolutions, linear layers and matrix products.

    They are those of the functions that are called, by layers or by others; of attention, its projections and both of
    its products (all of them, under a mask as well). A product of parameters alone, which makes a weight, costs
    nothing: it is not an example's. A layer of ``module`` that calls none (it multiplies by other means) counts as
    its type does.
    """
    heard, heard_before = 0, dict[nn.Module, int]()

    def add(macs: int) -> None:
        nonlocal heard
        heard += 1
        tell(macs)

    def hear(function: Any, read: Tensor, weight: Tensor, made: Tensor) -> None:
        numbers = read.numel() if is_transposed(function) else made.numel()
        add(numbers * math.prod(weight.shape[1:] if weight.ndim > 1 else weight.shape))

    def enter(layer: nn.Module, args: tuple[Any, ...]) -> None:
        heard_before[layer] = heard

    def leave(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if heard_before[layer] == heard:
            read = args[0] if args else kwargs["input1" if isinstance(layer, nn.Bilinear) else "input"]
            read = read.data if isinstance(read, PackedSequence) else read
            tell(layer_macs(layer, tuple(read.shape), tuple(output.shape) if isinstance(output, Tensor) else ()))

    layers = [layer for layer in module.modules() if isinstance(layer, Counted | Recurrent | nn.Bilinear)]
    handles = [layer.register_forward_pre_hook(enter) for layer in layers]
    handles += [layer.register_forward_hook(leave, with_kwargs=True) for layer in layers]
    try:
        with LayerCalls(hear), _Products(add):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Products(TorchFunctionMode):
    """While this lasts, ``tell`` hears the multiply-adds of every matrix product, attention included."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        super().__init__()
        self._tell = tell

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func not in _PRODUCTS or _makes_weight((*args, *given.values())):
            return func(*args, **given)
        # A fused attention has no products to be heard.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=_BY_VECTORS) as counter:
            made = func(*args, **given)
        self._tell(counter.get_total_flops() // 2)
        return made


def _vector_flops(matrix: Sequence[int], vector: Sequence[int], *more: Any, **named: Any) -> int:
    return 2 * math.prod(matrix)


_BY_VECTORS = {torch.ops.aten.mv: _vector_flops, torch.ops.aten.dot: _vector_flops}
"""What torch's own counter leaves out."""


def _makes_weight(values: Sequence[Any]) -> bool:
    tensors = [value for value in values if isinstance(value, Tensor)]
    return bool(tensors) and all(isinstance(tensor, nn.Parameter) for tensor in tensors)
