"""What a network costs: counted on a real module, counted from a plan, and in expectation over the gates.

Multiply-adds (MACs) are those of convolutions and linear layers for one example; parameters are all trainable tensors,
each counted once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from pgnas.bayes import BilinearCost
from pgnas.nn.channels import Barrier, ChannelGraph, Dense, Follow
from pgnas.nn.channels.rules_layers import Conv, ConvTranspose
from pgnas.nn.cut import cut_rule
from pgnas.nn.liveness import Plan
from pgnas.nn.sites import Site

CostName = Literal["macs", "params"]


@dataclass(frozen=True)
class Counts:
    """Parameters and multiply-adds (one example) of a network."""

    params: int
    macs: int


def measure(module: nn.Module, inputs: Sequence[Tensor]) -> Counts:
    """Count a real network by running it once on example inputs; it is left as it was."""
    total = 0

    def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += _layer_macs(layer, tuple(output.shape))

    kinds = (Conv, ConvTranspose, nn.Linear)
    handles = [layer.register_forward_hook(hook) for layer in module.modules() if isinstance(layer, kinds)]
    mode = module.training
    try:
        module.eval()
        with torch.no_grad():
            module(*(x[:1] for x in inputs))
    finally:
        module.train(mode)
        for handle in handles:
            handle.remove()
    return Counts(sum(p.numel() for p in module.parameters()), total)


def count_plan(graph: ChannelGraph, plan: Plan) -> Counts:
    """Count the network that a plan describes, without building it; equals :func:`measure` of the built one."""
    macs, params = 0, 0
    owned: dict[str, int] = {}
    for name, op in graph.ops.items():
        kept = plan.computed[name]
        if not kept.any():
            continue
        node = graph.nodes[name]
        layer = graph.layer(node)
        if node.op == "get_attr":
            owned[str(node.target)] = _attribute_params(graph, name, int(kept.sum()))
        if layer is None:
            continue
        if isinstance(op, Dense) or (isinstance(op, Follow) and op.module is not None):
            read = plan.reads[name][0]
            inputs, outputs = int(read.sum()), int(kept.sum())
            cut = cut_rule(layer, read.nonzero()[:, 0], kept.nonzero()[:, 0])
            owned[str(node.target)] = sum(
                math.prod(len(cut.slices.get(key, {}).get(d, range(s))) for d, s in enumerate(p.shape))
                for key, p in layer.named_parameters(recurse=False)
            )
            if isinstance(layer, Conv | ConvTranspose | nn.Linear):
                groups = cut.attributes.get("groups", 1)
                macs += _per_pair(layer, graph.shape(name) or ()) * inputs * outputs // groups
        else:
            owned[str(node.target)] = sum(p.numel() for p in layer.parameters())
            macs += _layer_macs(layer, graph.shape(name) or ())
    params = sum(owned.values())
    return Counts(params, macs)


def expected_cost(graph: ChannelGraph, sites: Sequence[Site], sizes: dict[str, int], kind: CostName) -> BilinearCost:
    """The expected cost as a function of the gates' keep logits (:class:`pgnas.bayes.BilinearCost`).

    The declared surrogate: a layer costs (kept inputs) x (needed outputs) and so much a needed output, where an output is
    needed if any gate that reads it is open. It differs from the extracted network where a gated layer has no
    reader or no live input left, and where an operation is a barrier.
    """
    return _Surrogate(graph, sites, sizes, kind).build()


class _Surrogate:
    """Collects the index tensors of a :class:`BilinearCost` from the graph.

    Symbolic rows have one column a site plus column 0 for "always": entry (c, 1 + s) is 1 + the unit of site s that reads
    channel c, or 0.
    """

    def __init__(self, graph: ChannelGraph, sites: Sequence[Site], sizes: dict[str, int], kind: CostName) -> None:
        self.graph, self.sites, self.kind = graph, sites, kind
        starts, start = {}, 0
        for name, size in sizes.items():
            starts[name], start = start, start + size
        self.units, self.starts = start, starts
        self.column = {site.node: 1 + s for s, site in enumerate(sites)}
        self.slot_start: list[int] = []
        self.slot_layer: list[Tensor] = []
        self.entries: list[Tensor] = []
        self.outputs: list[tuple[int, Tensor]] = []
        self.fixed: list[float] = []
        self.weights: list[tuple[float, float]] = []

    def build(self) -> BilinearCost:
        """Walk the graph backwards, then assemble."""
        layer_of_node = self._walk()
        slots = 0
        for site in self.sites:  # one slot a unit, not a channel: channels of one unit are read together
            units = int(site.unit_of_channel.max()) + 1
            self.slot_start.append(slots)
            self.slot_layer.append(torch.full((units,), layer_of_node.get(site.node, -1)))
            for gate in site.gates:
                self.entries.append(
                    torch.stack([slots + torch.arange(units), self.starts[gate] + torch.arange(units)])
                )
            slots += units
        readings, layers, always, done = [], [], [], 0
        for layer, rows in self.outputs:
            channel, column = rows[:, 1:].nonzero(as_tuple=True)
            unit = rows[channel, 1 + column] - 1
            starts = torch.tensor(self.slot_start, dtype=torch.long)
            readings.append(torch.stack([done + channel, starts[column] + unit]))
            layers.append(torch.full((len(rows),), layer))
            always.append(rows[:, 0] > 0)
            done += len(rows)
        entry, reading = torch.cat(self.entries, 1), torch.cat(readings, 1)
        weight = torch.tensor(self.weights)
        return BilinearCost(
            units=self.units,
            slot_layer=torch.cat(self.slot_layer),
            entry_slot=entry[0],
            entry_unit=entry[1],
            fixed_inputs=torch.tensor(self.fixed),
            output_layer=torch.cat(layers),
            output_always=torch.cat(always),
            reader_output=reading[0],
            reader_slot=reading[1],
            layer_weight=weight[:, 0],
            output_weight=weight[:, 1],
        )

    def _walk(self) -> dict[str, int]:
        columns = 1 + len(self.sites)
        rows = {
            name: torch.zeros(op.value.channels, columns, dtype=torch.long) for name, op in self.graph.ops.items()
        }
        layer_of_node: dict[str, int] = {}
        by_node = {site.node: site for site in self.sites}
        for name in reversed(self.graph.ops):
            op, node = self.graph.ops[name], self.graph.nodes[name]
            if node.op == "output":
                rows[name][:, 0] = 1
            if self._has_cost(name):
                layer_of_node[name] = len(self.weights)
                self._add_layer(name, rows[name], by_node.get(name))
            if name in by_node:
                site = by_node[name]
                reads = [torch.zeros(len(site.unit_of_channel), columns, dtype=torch.long)]
                reads[0][:, self.column[name]] = 1 + site.unit_of_channel
            elif isinstance(op, Dense | Barrier):
                # Read whatever the gates say, as long as the value is used at all.
                reads = [torch.zeros(value.channels, columns, dtype=torch.long) for value in op.values]
                for read in reads:
                    read[:, 0] = 1
            else:
                reads = _pull_symbols(op.pull, rows[name])
            for source, read in zip(op.inputs, reads, strict=True):
                rows[source] = _join(rows[source], read)
        return layer_of_node

    def _has_cost(self, name: str) -> bool:
        layer = self.graph.layer(self.graph.nodes[name])
        op = self.graph.ops[name]
        if layer is None or isinstance(op, Barrier):
            return False  # a barrier's cost is the same for all architectures but those that never use it
        has_params = any(True for _ in layer.parameters(recurse=False))
        return has_params and (self.kind == "params" or isinstance(layer, Conv | ConvTranspose | nn.Linear))

    def _add_layer(self, name: str, rows: Tensor, site: Site | None) -> None:
        layer, op = self.graph.layer(self.graph.nodes[name]), self.graph.ops[name]
        assert layer is not None
        per_output = float(sum(_is_vector(p) for p in layer.parameters(recurse=False))) if self.kind == "params" else 0.0
        if not isinstance(layer, Conv | ConvTranspose | nn.Linear):
            self.fixed.append(0.0)
            self.weights.append((0.0, per_output))
        else:
            positions = 1 if self.kind == "params" else _positions(layer, self.graph.shape(name) or ())
            kernel = math.prod(layer.kernel_size) if not isinstance(layer, nn.Linear) else 1
            groups = 1 if isinstance(layer, nn.Linear) else layer.groups
            if isinstance(op, Dense) and site is not None and op.groups > 1:
                # A unit is a group: it has per_group inputs, all of which read the group's outputs alone.
                per_output = op.per_group * kernel * positions + per_output
                self.fixed.append(0.0)
                self.weights.append((0.0, per_output))
            elif isinstance(op, Dense) and groups == 1:
                channels_a_unit = 1
                if site is not None:
                    channels_a_unit = len(site.unit_of_channel) // (int(site.unit_of_channel.max()) + 1)
                self.fixed.append(0.0 if site is not None else float(op.values[0].channels))
                self.weights.append((float(kernel * positions * channels_a_unit), per_output))
            else:  # depthwise: one input an output
                fan_in = op.values[0].channels // groups
                self.fixed.append(0.0)
                self.weights.append((0.0, per_output + fan_in * kernel * positions))
        self.outputs.append((len(self.weights) - 1, rows))


def _pull_symbols(pull: object, rows: Tensor) -> list[Tensor]:
    """Pull symbolic rows; where channels with different units meet in one, the result is "always"."""
    top = int(rows.max()) + 1
    high = cast("list[Tensor]", pull(rows))  # type: ignore[operator]
    low = cast("list[Tensor]", pull(torch.where(rows > 0, top - rows, 0)))  # type: ignore[operator]
    result = []
    for most, least in zip(high, low, strict=True):
        mixed = ((most[:, 1:] > 0) & (most[:, 1:] != top - least[:, 1:])).any(1)
        most = most.clone()
        most[mixed, 0] = 1
        result.append(most)
    return result


def _join(a: Tensor, b: Tensor) -> Tensor:
    """Union of readers; the same site reading two different units of one channel counts as "always"."""
    joined = torch.maximum(a, b)
    mixed = ((a > 0) & (b > 0) & (a != b))[:, 1:].any(1)
    joined[mixed, 0] = 1
    return joined


def _is_vector(parameter: Tensor) -> bool:
    return parameter.ndim == 1


def _positions(layer: nn.Module, shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:-1]) if isinstance(layer, nn.Linear) else math.prod(shape[2:])


def _per_pair(layer: Conv | ConvTranspose | nn.Linear, shape: tuple[int, ...]) -> int:
    """Multiply-adds of one (input, output) channel pair within a group."""
    positions = _positions(layer, shape)
    if isinstance(layer, nn.Linear):
        return positions
    kernel = math.prod(layer.kernel_size)
    if isinstance(layer, ConvTranspose):  # each input position meets each kernel element
        stride = math.prod(layer.stride)
        return max(1, positions // stride) * kernel
    return positions * kernel


def _layer_macs(layer: nn.Module, shape: tuple[int, ...]) -> int:
    if isinstance(layer, nn.Linear):
        return _per_pair(layer, shape) * layer.in_features * layer.out_features
    if isinstance(layer, Conv | ConvTranspose):
        return _per_pair(layer, shape) * layer.in_channels * layer.out_channels // layer.groups
    return 0


def _attribute_params(graph: ChannelGraph, name: str, kept: int) -> int:
    owner, _, leaf = str(graph.nodes[name].target).rpartition(".")
    value = getattr(graph.trace.module.get_submodule(owner), leaf)
    if not isinstance(value, nn.Parameter):
        return 0
    axis = graph.ops[name].value.axis
    return value.numel() if axis is None else value.numel() // value.shape[axis] * kept
