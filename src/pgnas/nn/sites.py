"""Where a network is gated: at the input channels of its convolutions and linear layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from pgnas.errors import ModelError
from pgnas.nn.channels import Barrier, ChannelGraph, Dense, Follow
from pgnas.nn.channels.rules_products import HeadByHead
from pgnas.nn.choice import GATES, OutputGate
from pgnas.nn.gate import GateSpec, Group
from pgnas.nn.macs import Conv, ConvTranspose, Counted

_REASONS_SHOWN = 3


@dataclass(frozen=True)
class StreamPart:
    """Channels of a gated layer's input that also obey a stream gate.

    Attributes:
        gate: The stream gate.
        start: The first of these channels.
        units: The stream gate's unit of each of them, shape (channels,), long.
    """

    gate: str
    start: int
    units: Tensor


@dataclass(frozen=True)
class Site:
    """A gated layer.

    Attributes:
        layer: The layer's name in the network.
        node: Its node in the traced graph.
        source: The node whose value is gated.
        axis: The channel axis of that value.
        gate: The name of the gate that must be open for a channel to be read.
        unit_of_channel: The gate's unit of every channel, shape (channels,), long.
        option: For the output of an operation its unit, which all channels share.
        streams: Stream gates that must be open as well for a channel to be read.
    """

    layer: str
    node: str
    source: str
    axis: int
    gate: str
    unit_of_channel: Tensor
    option: int | None = None
    streams: tuple[StreamPart, ...] = ()

    @property
    def channels_in_unit(self) -> int:
        """How many channels each of the gate's units stands for here."""
        return len(self.unit_of_channel) // (int(self.unit_of_channel.max()) + 1)

    def units(self, first: Mapping[str, int]) -> Tensor:
        """The gate's unit of every channel among all U, shape (channels,).

        Args:
            first: Each gate's first unit among all U.
        """
        return first[self.gate] + self.unit_of_channel

    def stream_units(self, first: Mapping[str, int], *, without: Tensor | int) -> Tensor:
        """The stream gate's unit of every channel among all U, shape (channels,); ``without`` where there is none."""
        found = torch.zeros_like(self.unit_of_channel) + without
        for part in self.streams:
            found[part.start : part.start + len(part.units)] = first[part.gate] + part.units
        return found


@dataclass(frozen=True)
class Ungated:
    """A layer with channels that has no gate, and why."""

    layer: str
    reason: str


@dataclass(frozen=True)
class SearchSpace:
    """The gates of a network, where they act, and what is not gated.

    Attributes:
        sites: The gated layers.
        gates: All gates, categorical ones last.
        ungated: What has no gate.
        operations: The gated outputs of operations.
        channels_per_gate: Channels a unit, as of :func:`pgnas.supernet`.
    """

    sites: tuple[Site, ...]
    gates: tuple[GateSpec, ...]
    ungated: tuple[Ungated, ...]
    operations: tuple[Site, ...] = ()
    channels_per_gate: int = 1

    @property
    def all_sites(self) -> tuple[Site, ...]:
        """Gated layers and operations."""
        return (*self.sites, *self.operations)


def find_sites(
    graph: ChannelGraph,
    *,
    exclude: Sequence[str] = (),
    tie: Sequence[Sequence[str]] = (),
    gate_inputs: bool = False,
    gate_layers: bool = True,
    channels_per_gate: int = 1,
) -> SearchSpace:
    """Put a gate at the input of every convolution and linear layer, and at the output of every marked operation.

    Args:
        graph: The analysed network.
        exclude: Shell-style patterns of names of layers and choices that stay ungated.
        tie: Lists of layers, or of choices, that share one gate.
        gate_inputs: Whether layers that read the network's input itself are gated too.
        gate_layers: Whether layers are gated at all.
        channels_per_gate: Channels a unit, as of :func:`pgnas.supernet`.

    Raises:
        ModelError: Nothing can be gated; a pattern or a tie names no gated layer; tied layers differ in size.
    """
    sites: list[Site] = []
    ungated: list[Ungated] = []
    specs: dict[str, GateSpec] = {}
    for node, op in graph.ops.items():
        layer = graph.layer(graph.nodes[node])
        if layer is None:
            continue
        name = str(graph.nodes[node].target)
        reason = _reason(graph, node, name, exclude, gate_inputs)
        if reason is None and not gate_layers:
            reason = "only operations are searched"
        if reason is None:
            assert isinstance(op, Dense)
            site, spec = _site(graph, op, name)
            sites.append(site)
            specs[name] = spec
        elif reason:
            ungated.append(Ungated(name, reason))
    ungated += [Ungated(name, reason) for name, reason in graph.trace.uncalled.items()]
    operations, of_operations = find_operations(graph)
    choices = list(of_operations)
    operations = [site for site in operations if not any(fnmatchcase(site.gate, pattern) for pattern in exclude)]
    _require_known(exclude, [*(s.layer for s in sites), *(u.layer for u in ungated), *choices])
    if not sites and not operations:
        reasons = ", ".join(f"'{entry.layer}' ({entry.reason})" for entry in ungated[:_REASONS_SHOWN])
        remedy = f"not gated are {reasons}" if reasons else "use a network with convolutions or linear layers"
        raise ModelError("model", "must have a layer that can be gated", value="none", remedy=remedy)
    specs |= {site.gate: of_operations[site.gate] for site in operations}
    sites, operations = _tie(sites, specs, tie), _tie(operations, specs, tie)
    sites = _coarsen(graph, sites, specs, channels_per_gate)
    used = {site.gate for site in (*sites, *operations)}
    gates = sorted((spec for name, spec in specs.items() if name in used), key=lambda spec: spec.exclusive)
    return SearchSpace(tuple(sites), tuple(gates), tuple(ungated), tuple(operations), channels_per_gate)


def find_operations(graph: ChannelGraph) -> tuple[list[Site], dict[str, GateSpec]]:
    """The marked outputs of operations, and the gate of each choice.

    Raises:
        ModelError: An output has no batch axis, or no other one.
    """
    sites: list[Site] = []
    specs: dict[str, GateSpec] = {}
    for node, op in graph.ops.items():
        mark = graph.layer(graph.nodes[node])
        if not isinstance(mark, OutputGate):
            continue
        choice, _, operation = str(graph.nodes[node].target).rpartition(f"{GATES}.")
        choice = choice.removesuffix(".")
        axis, channels = op.value.axis, op.value.channels
        if axis is None or axis == 0 or not graph.is_batched(node) or graph.mixes_rows(node):
            raise ModelError(
                f"operation '{operation}' of '{choice}'", "must make a value with the batch first", remedy="reshape it"
            )
        unit = torch.full((channels,), mark.index)
        sites.append(Site(f"{choice}.{operation}", node, op.inputs[0], axis, choice, unit, mark.index))
        groups = () if mark.exclusive else tuple(Group(f"{choice}.{o}", k, k + 1) for k, o in enumerate(mark.options))
        specs[choice] = GateSpec(choice, len(mark.options), groups, mark.options)
    return sites, specs


def _reason(graph: ChannelGraph, node: str, name: str, exclude: Sequence[str], gate_inputs: bool) -> str | None:
    """Why a layer is not gated; empty if it has no channels to gate; None if it is gated."""
    op = graph.ops[node]
    layer = graph.layer(graph.nodes[node])
    if not isinstance(op, Dense):
        if isinstance(op, Barrier) and layer is not None and any(True for _ in layer.parameters()):
            return op.reason
        if isinstance(op, Follow) and isinstance(layer, Conv | ConvTranspose):
            return "depthwise: it follows the gates around it"
        return ""
    if any(fnmatchcase(name, pattern) for pattern in exclude):
        return "excluded"
    if not isinstance(layer, Counted):
        return "it is no kind of torch.nn convolution or linear layer: it is cut but has no gate"
    if op.groups > 1 and op.per_group == 1:
        return "depthwise: it follows the gates around it"
    if not gate_inputs and graph.is_input(op.inputs[0]):
        return "it reads the network's input"
    if not graph.is_batched(op.inputs[0]):
        return "the first axis of its input is not the batch"
    if graph.mixes_rows(op.inputs[0]):
        return "the rows of its input do not come one example after the other"
    return None


def _site(graph: ChannelGraph, op: Dense, name: str) -> tuple[Site, GateSpec]:
    """The gate of one layer: a unit is a channel, a flattened channel's block of features, a head, or a group."""
    value = op.values[0]
    per_unit = op.per_group if op.groups > 1 else value.block
    units = value.channels // per_unit
    axis = value.axis
    assert axis is not None
    if op.groups > 1:
        groups = [Group(op.inputs[0], 0, units)]
    else:
        runs = graph.sources(op.inputs[0])
        groups = [Group(r.origin, r.start // per_unit, (r.start + r.channels) // per_unit) for r in runs]
    unit_of_channel = torch.arange(units).repeat_interleave(per_unit)
    return Site(name, op.name, op.inputs[0], axis, name, unit_of_channel), GateSpec(name, units, tuple(groups))


def _coarsen(graph: ChannelGraph, sites: list[Site], specs: dict[str, GateSpec], wanted: int) -> list[Site]:
    """Let a unit be several channels: as many as are wanted, or the largest divisor of that which all parts share.

    So the units of a stream and of each of its readers lie within one another, those behind a grouped convolution
    within its groups, and all units of a gate are alike.

    Args:
        graph: The analysed network.
        sites: Its gated layers, with the gates that they share.
        specs: Gates by name; those of the layers are changed.
        wanted: Channels a unit.
    """
    gated = {site.node for site in sites}
    shared: dict[str, int] = {}
    for site in sites:
        shared[site.gate] = math.gcd(shared.get(site.gate, wanted), *_parts(graph, site, gated))
    for name, units in shared.items():
        spec = specs[name]
        groups = tuple(replace(g, start=g.start // units, stop=g.stop // units) for g in spec.groups)
        specs[name] = replace(spec, units=spec.units // units, groups=groups)
    return [replace(site, unit_of_channel=site.unit_of_channel // shared[site.gate]) for site in sites]


def _parts(graph: ChannelGraph, site: Site, gated: set[str]) -> list[int]:
    """Into what numbers of channels what a layer reads falls; 1 where its units are something else than channels."""
    op = graph.ops[site.node]
    assert isinstance(op, Dense)
    block, parts = op.values[0].block, list[int]()
    if op.groups > 1:
        return [1]
    for run in graph.sources(op.inputs[0]):
        made, origin = graph.value(run.origin), graph.ops[run.origin]
        if made_by_heads(graph, run.origin) or max(1, run.channels // made.channels) * made.block != block:
            return [1]  # a head is no channel, and of a block of features only the whole one is
        parts.append(run.channels // block)
        if run.origin in gated and isinstance(origin, Dense) and origin.groups > 1:
            parts.append(made.channels // origin.groups)
    return parts


def made_by_heads(graph: ChannelGraph, origin: str) -> bool:
    """Whether the channels that a node makes are the heads of an attention."""
    return isinstance(graph.ops[origin], HeadByHead)


def _tie(sites: list[Site], specs: dict[str, GateSpec], tie: Sequence[Sequence[str]]) -> list[Site]:
    """Let the layers of each tie share the gate of the first."""
    owner = {name: name for name in specs}
    for layers in tie:
        for layer in layers:
            if layer not in specs:
                raise ModelError("tie", "must name gated layers", value=f"'{layer}'", remedy="name layers with a gate")
            if specs[layer].options != specs[layers[0]].options:
                raise ModelError(
                    f"tie of '{layers[0]}' and '{layer}'",
                    "must join layers, or choices with the same options",
                    value=f"{list(specs[layers[0]].options)} and {list(specs[layer].options)}",
                    remedy="tie only choices of one kind",
                )
            if specs[layer].units != specs[layers[0]].units:
                raise ModelError(
                    f"tie of '{layers[0]}' and '{layer}'",
                    "must join layers with equally many channels",
                    value=f"{specs[layers[0]].units} and {specs[layer].units}",
                    remedy="tie only layers that read values of one width",
                )
            old = owner[layer]  # and whatever it was tied to before
            owner = {name: owner[layers[0]] if gate == old else gate for name, gate in owner.items()}
    return [replace(site, gate=owner[site.gate]) for site in sites]


def _require_known(patterns: Sequence[str], layers: list[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            raise ModelError(
                f"exclude '{pattern}'", "must match a convolution or linear layer", remedy="check the layer's name"
            )
