"""Extraction: a sub-network of a supernet as a plain, smaller network."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from pgnas.architecture import Architecture
from pgnas.nn.auxiliary import without_heads
from pgnas.nn.channels import ChannelGraph
from pgnas.nn.channels.ops import besides_input
from pgnas.nn.liveness import Plan, plan_heads
from pgnas.nn.modes import batch_statistics, evaluation
from pgnas.nn.rebuild import Builder, SmallNetwork
from pgnas.nn.supernet import Supernet


def extract(supernet: Supernet, architecture: Architecture) -> nn.Module:
    """The sub-network that ``architecture`` names, as a plain module with the supernet's weights.

    In eval mode its outputs equal those of the supernet with the architecture fixed, to float rounding. The module is
    new: it shares no tensor with the supernet and needs nothing of pgnas.

    It is made for inputs of the size of the supernet's example: what remains of a path that was dropped whole is a
    constant, after padded convolutions a map of that size. For another size make the supernet with an example of it.

    Raises:
        ArchitectureError: The architecture belongs to another search space.
    """
    return extract_small(supernet, architecture).module


@torch.no_grad()
def extract_small(
    supernet: Supernet, architecture: Architecture, *, heads: bool = False, re_estimated: bool = False
) -> SmallNetwork:
    """As :func:`extract`, with the record of which slices each layer kept.

    Args:
        supernet: The supernet.
        architecture: What is kept.
        heads: Also extract auxiliary heads that the network has in training, if what they read allows it.
        re_estimated: BatchNorm's statistics will be re-estimated. What does not depend on the data is folded into
            constants, and those behind a BatchNorm are made with the statistics that it would have then.
    """
    plan = supernet.plan(architecture)
    if heads and supernet.has_heads:
        graph = supernet.headed_graph
        with_heads = plan_heads(graph, plan, supernet.channel_masks(supernet.gates.mask(architecture).cpu()))
        if with_heads is not None:
            small = _build(supernet, architecture, graph, with_heads, re_estimated)
            return replace(small, module=without_heads(small.module).eval(), headed=small.module)
    return _build(supernet, architecture, supernet.graph, plan, re_estimated)


def _build(
    supernet: Supernet, architecture: Architecture, graph: ChannelGraph, plan: Plan, re_estimated: bool
) -> SmallNetwork:
    wanted = {name for name in graph.ops if plan.constant[name].any()}
    folding = {name: folded for name, folded in plan.folded.items() if folded.any()}
    wanted |= {
        read.name for name in folding for read in graph.nodes[name].all_input_nodes
    }  # sizes it is called with too
    values = _values_of(supernet, architecture, graph, wanted, re_estimated) if wanted else {}
    contributions = {name: _contribution(graph, supernet, name, folded, values) for name, folded in folding.items()}
    constants = {name: values[name] for name in wanted if plan.constant[name].any()}
    return Builder(graph, plan, supernet.body, constants=constants, contributions=contributions).build()


def _values_of(
    supernet: Supernet, architecture: Architecture, graph: ChannelGraph, names: set[str], re_estimated: bool
) -> dict[str, Any]:
    """Constants of the supernet with the architecture fixed, in eval mode, as one example has them: all have the same.

    An example may have several rows on the first axis (heads of attention, windows), which are no equals. As all
    examples have the same, the statistics of any batch are those that BatchNorm would be re-estimated to. Sizes are as
    they are.
    """
    found: dict[str, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if n.name in names:
                is_map = isinstance(value, Tensor) and value.ndim > 0
                found[n.name] = value[: graph.example_shape(n.name)[0]].clone() if is_map else value
            return value

    device, dtype = next((p.device, p.dtype) for p in supernet.body.parameters())
    inputs = [x.to(device, dtype if x.is_floating_point() else x.dtype) for x in supernet.graph.trace.inputs]
    if re_estimated:
        inputs = [x.repeat(2, *[1] * (x.ndim - 1)) for x in inputs]  # one value a channel has no variance
    mask = supernet.gates.mask(architecture).to(dtype)[None]
    with evaluation(supernet), batch_statistics(supernet) if re_estimated else nullcontext():
        Recorder(supernet.body).run(*inputs, list(supernet.channel_masks(mask).values()))
    return found


def _contribution(graph: ChannelGraph, supernet: Supernet, name: str, folded: Tensor, values: dict[str, Any]) -> Tensor:
    """What the constant channels that a layer reads add to its output (rows, ...): that of them alone, no bias."""
    op = graph.ops[name]
    layer = supernet.body.get_submodule(str(graph.nodes[name].target))
    value: Tensor = values[op.inputs[0]]
    more, named = map_arg(besides_input(graph.nodes[name]), lambda node: values[node.name])
    shape = [1] * value.ndim
    axis = op.values[0].axis
    assert axis is not None
    shape[axis] = len(folded)
    only = value * folded.to(value.device, value.dtype).reshape(shape)
    output: Tensor = layer(only, *more, **named) - layer(torch.zeros_like(only), *more, **named)
    return output
