"""What a network costs: counted on a real module, or counted from a plan of one that is not built.

Multiply-adds (MACs) are those of convolutions and linear layers for one example (not the products inside an attention
layer); parameters are all trainable tensors, each counted once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pgnas.nn.channels import ChannelGraph
from pgnas.nn.cut import Cut, cut_to
from pgnas.nn.liveness import Plan
from pgnas.nn.macs import Counted, macs_per_pair, watch_macs
from pgnas.nn.modes import evaluation

CostName = Literal["macs", "params", "latency"]


@dataclass(frozen=True)
class Counts:
    """Parameters and multiply-adds (one example) of a network."""

    params: int
    macs: int


def measure(module: nn.Module, inputs: Sequence[Tensor]) -> Counts:
    """Count a real network by running it once on one of the example inputs; it is left as it was."""
    macs: list[int] = []
    with evaluation(module), torch.no_grad(), watch_macs(module, macs.append):
        module(*(x[:1].clone() for x in inputs))
    return Counts(sum(p.numel() for p in module.parameters()), sum(macs))


def count_plan(graph: ChannelGraph, plan: Plan) -> Counts:
    """Count the network that a plan describes, without building it; equals :func:`measure` of the built one."""
    macs = 0
    params: dict[int, int] = {}  # by identity, since tied parameters count once
    for name, op in graph.ops.items():
        kept = plan.computed[name]
        node = graph.nodes[name]
        layer = graph.layer(node)
        if not kept.any() or (layer is None and node.op != "get_attr"):
            continue
        if layer is None:
            params.update(_attribute_params(graph, name, int(kept.sum())))
        elif not graph.is_cut(name):
            params.update(_remaining(layer, Cut()))
            macs += graph.macs(name)
        else:
            read = plan.reads[name][0]
            cut = cut_to(layer, read, kept)
            params.update(_remaining(layer, cut))
            if isinstance(layer, Counted):
                groups = cut.attributes.get("groups", 1)
                pairs = int(read.sum()) * int(kept.sum()) // groups
                macs += macs_per_pair(layer, graph.example_shape(op.inputs[0]), graph.example_shape(name)) * pairs
    return Counts(sum(params.values()), macs)


def _remaining(layer: nn.Module, cut: Cut) -> dict[int, int]:
    """How many numbers of each of a layer's parameters remain."""
    sizes = {}
    for name, parameter in layer.named_parameters():
        kept = cut.slices.get(name, {})
        shape = (len(kept[d]) if d in kept else size for d, size in enumerate(parameter.shape))
        sizes[id(parameter)] = math.prod(shape)
    return sizes


def _attribute_params(graph: ChannelGraph, name: str, kept: int) -> dict[int, int]:
    owner, _, leaf = str(graph.nodes[name].target).rpartition(".")
    value = getattr(graph.trace.module.get_submodule(owner), leaf)
    if not isinstance(value, nn.Parameter):
        return {}
    axis = graph.ops[name].value.axis
    return {id(value): value.numel() if axis is None else value.numel() // value.shape[axis] * kept}
