"""What a network costs: counted on a real module, or counted from a plan of one that is not built.

Multiply-adds (MACs) are those of convolutions, linear layers and matrix products (attention among them), be they
modules or functions, for one example; parameters are all trainable tensors, each counted once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pgnas.nn.channels import ChannelGraph, Dense
from pgnas.nn.cut import Cut, cut_layer, cut_to
from pgnas.nn.liveness import Plan
from pgnas.nn.macs import Counted, watch_macs
from pgnas.nn.modes import evaluation
from pgnas.nn.prices import pairs

CostName = Literal["macs", "params", "latency"]


@dataclass(frozen=True)
class Counts:
    """Parameters and multiply-adds (one example) of a network."""

    params: int
    macs: int


def measure(module: nn.Module, inputs: Tensor | Sequence[Tensor]) -> Counts:
    """Count a real network by running it once on one of the example inputs; it is left as it was.

    Args:
        module: The network.
        inputs: Example inputs, a tensor (B, C, ...) or several.
    """
    macs: list[int] = []
    examples = (inputs,) if isinstance(inputs, Tensor) else inputs
    with evaluation(module), torch.no_grad(), watch_macs(module, macs.append):
        module(*(x[:1].clone() for x in examples))
    return Counts(sum(p.numel() for p in module.parameters()), sum(macs))


def count_plan(graph: ChannelGraph, plan: Plan) -> Counts:
    """Count the network that a plan describes, without building it; equals :func:`measure` of the built one."""
    macs = 0
    params: dict[int, int] = {}  # by identity, since tied parameters count once
    for name, op in graph.ops.items():
        kept = plan.computed[name]
        node = graph.nodes[name]
        layer = graph.layer(node)
        if not kept.any():
            continue
        read = plan.reads[name][0] if op.inputs else kept
        if node.op == "get_attr":
            params.update(_attribute_params(graph, name, int(kept.sum())))
        elif layer is not None:
            cut = cut_to(layer, read, kept) if graph.is_cut(name) else Cut()
            params.update(_remaining(layer, cut))
            is_own = isinstance(op, Dense) and not isinstance(layer, Counted)
            if is_own and graph.macs(name) and len(node.args) == 1 and not node.kwargs:
                macs += _run_cut(layer, cut, graph.example_shape(op.inputs[0]), op.values[0].axis, int(read.sum()))
                continue
        macs += graph.macs(name) * pairs(op, int(read.sum()), int(kept.sum())) // pairs(op, len(read), len(kept))
    return Counts(sum(params.values()), macs)


def _remaining(layer: nn.Module, cut: Cut) -> dict[int, int]:
    """How many numbers of each of a layer's parameters remain."""
    sizes = {}
    for name, parameter in layer.named_parameters():
        kept = cut.slices.get(name, {})
        shape = (len(kept[d]) if d in kept else size for d, size in enumerate(parameter.shape))
        sizes[id(parameter)] = math.prod(shape)
    return sizes


def _run_cut(layer: nn.Module, cut: Cut, shape: Sequence[int], axis: int | None, channels: int) -> int:
    """Multiply-adds of a layer of a user's type, cut: they need not be proportional to its channel pairs."""
    sizes = [channels if i == axis else size for i, size in enumerate(shape)]
    macs: list[int] = []
    small = cut_layer(layer, cut).eval()
    with torch.no_grad(), watch_macs(small, macs.append):
        kinds = [t for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point()]
        small((kinds or [torch.empty(0)])[0].new_zeros(sizes))
    return sum(macs)


def _attribute_params(graph: ChannelGraph, name: str, kept: int) -> dict[int, int]:
    owner, _, leaf = str(graph.nodes[name].target).rpartition(".")
    value = getattr(graph.trace.module.get_submodule(owner), leaf)
    if not isinstance(value, nn.Parameter):
        return {}
    axis = graph.ops[name].value.axis
    return {id(value): value.numel() if axis is None else value.numel() // value.shape[axis] * kept}
