"""A layer behind a gate, without the memory of a second input: what autograd would keep is computed again."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from pgnas.nn.channels.ops import besides_input, first_input
from pgnas.nn.choice import OutputGate
from pgnas.nn.gate import apply_gate
from pgnas.nn.graph_passes import free_name
from pgnas.nn.macs import ConvTranspose


def gated_layer(layer: nn.Module, x: Tensor, mask: Tensor, axis: int, *more: Any, **named: Any) -> Tensor:
    """``layer(apply_gate(x, mask, axis), ...)``; for the backward pass x and the mask are kept, their product is not.

    The layer's weight gradient needs the product, which is as large as x. It is multiplied again in the backward pass,
    by the same operation on the same tensors: gradients do not change by a bit. Under ``torch.compile`` the compiler
    does the same.

    Args:
        layer: A convolution or a linear layer.
        x: Its input before the gate, (B, ..., C at ``axis``, ...).
        mask: (B or 1, C).
        axis: Channel axis of x.
        more: What the layer takes besides its input (the size of a transposed convolution's output).
        named: The same by name.
    """
    gated = apply_gate(x, mask, axis)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        output: Tensor = layer(gated, *more, **named)
        return output
    product = _Product(x, mask, axis, gated)
    with torch.autograd.graph.saved_tensors_hooks(product.pack, product.unpack):
        kept: Tensor = layer(gated, *more, **named)
    return kept


def input_weight_sq(layer: nn.Module) -> Tensor:
    """Squared norm of the weights that read each input channel, or each group of a grouped layer, with gradient."""
    weight = cast(Tensor, layer.weight)
    groups = getattr(layer, "groups", 1)
    if groups > 1:
        return weight.reshape(groups, -1).pow(2).sum(1)
    by_channel = weight if isinstance(layer, ConvTranspose) else weight.transpose(0, 1)
    return by_channel.flatten(1).pow(2).sum(1)


def insert_gates(root: nn.Module, graph: fx.Graph, sites: Sequence[tuple[str, int]]) -> fx.GraphModule:
    """A copy of a graph with a gate before each layer; it takes their masks as one more argument, a list.

    Args:
        root: Owner of the layers; they are shared.
        graph: The graph.
        sites: Names of the layers' nodes, and the channel axes of their inputs; of marked outputs of operations, too.
    """
    copies: dict[fx.Node, fx.Node] = {}
    gated = fx.Graph()
    output = gated.graph_copy(graph, copies)
    gated.output(output)
    named = {node.name: copies[node] for node in graph.nodes if node in copies}
    inputs = [node for node in gated.nodes if node.op == "placeholder"]
    taken = {node.name for node in gated.nodes} | {str(node.target) for node in inputs}
    free = free_name("gates", taken.__contains__)
    with gated.inserting_after(inputs[-1]):
        masks = gated.placeholder(free, default_value=None)  # a default, since inputs before it may have one
    for index, (name, axis) in enumerate(sites):
        layer = named[name]
        source = first_input(layer)
        with gated.inserting_before(layer):
            mask = gated.call_function(operator.getitem, (masks, index))
            if isinstance(root.get_submodule(str(layer.target)), OutputGate):
                layer.op, layer.target = "call_function", apply_gate
                layer.args, layer.kwargs = (source, mask, axis), {}
                continue
            module = gated.get_attr(str(layer.target))
        # In place: the node keeps its name, by which constants are found.
        layer.op, layer.target = "call_function", gated_layer
        more, named_more = besides_input(layer)
        layer.args, layer.kwargs = (module, source, mask, axis, *more), named_more
    return fx.GraphModule(root, gated, class_name=type(root).__name__)


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
