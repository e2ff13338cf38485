"""A layer behind a gate, without the memory of a second input: what autograd would keep is computed again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgnas.nn.gate import apply_gate


def gated_layer(layer: nn.Module, x: Tensor, mask: Tensor, axis: int) -> Tensor:
    """``layer(apply_gate(x, mask, axis))``; for the backward pass x and the mask are kept, their product is not.

    The layer's weight gradient needs the product, which is as large as x. It is multiplied again in the backward pass,
    by the same operation on the same tensors: gradients do not change by a bit. Under ``torch.compile`` the compiler
    does the same.

    Args:
        layer: A convolution or a linear layer.
        x: Its input before the gate, (B, ..., C at ``axis``, ...).
        mask: (B or 1, C).
        axis: Channel axis of x.
    """
    gated = apply_gate(x, mask, axis)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        output: Tensor = layer(gated)
        return output
    product = _Product(x, mask, axis, gated)
    with torch.autograd.graph.saved_tensors_hooks(product.pack, product.unpack):
        kept: Tensor = layer(gated)
    return kept


_View = tuple[torch.Size, tuple[int, ...], int]
"""Shape, strides and offset of a tensor in its storage."""


class _Product:
    """Stands for the product of x and the mask among the tensors that autograd keeps."""

    def __init__(self, x: Tensor, mask: Tensor, axis: int, gated: Tensor) -> None:
        self._x, self._mask, self._axis = x.detach(), mask.detach(), axis
        self._versions = self._x._version, self._mask._version
        self._address = gated.untyped_storage().data_ptr()  # unique as long as the layer runs: the caller holds gated

    def pack(self, saved: Tensor) -> Tensor | _View:
        """The tensor itself, unless it is the product or a view of it."""
        if not saved.numel() or saved.untyped_storage().data_ptr() != self._address:
            return saved
        return saved.shape, saved.stride(), int(saved.storage_offset())

    def unpack(self, packed: Tensor | _View) -> Tensor:
        """The inverse of :meth:`pack`."""
        if isinstance(packed, Tensor):
            return packed
        if (self._x._version, self._mask._version) != self._versions:
            raise RuntimeError("the input of a gated layer was changed in place before the backward pass needed it")
        return apply_gate(self._x, self._mask, self._axis).as_strided(*packed)
