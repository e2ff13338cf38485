"""What of a network would be gated, told before any training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from pgnas.architecture import Architecture
from pgnas.nn.channels import Barrier, ChannelGraph, Dense, describe
from pgnas.nn.coupling import coupled_values, gated_values
from pgnas.nn.macs import Conv, ConvTranspose
from pgnas.nn.sites import Site
from pgnas.nn.streams import STREAM_GRANULARITIES, add_streams
from pgnas.nn.supernet import Supernet

FORMAT = "pgnas.inspection/1"
SHOWN = 3
"""So many entries of a list are in the short form."""


@dataclass(frozen=True)
class SourceUnits:
    """Units of a gate that stem from one operation.

    Attributes:
        origin: The layer or operation that produced the channels.
        units: How many units; under group granularity they share a logit.
    """

    origin: str
    units: int


@dataclass(frozen=True)
class GatedLayer:
    """A layer with a gate at its input.

    Attributes:
        layer: Its name.
        kind: What it is, such as ``conv 3x3``.
        gate: The gate's name; tied layers share one.
        units: The gate's units: input channels (one or several a unit), heads, or groups of a grouped convolution.
        params: The layer's parameters.
        macs: Its multiply-adds for one example.
        sources: Where the units come from, in order.
    """

    layer: str
    kind: str
    gate: str
    units: int
    params: int
    macs: int
    sources: tuple[SourceUnits, ...]


@dataclass(frozen=True)
class UngatedLayer:
    """A layer without a gate, and why."""

    layer: str
    kind: str
    reason: str
    params: int
    macs: int


@dataclass(frozen=True)
class BarrierFound:
    """An operation through which channels could not be followed; it is kept whole.

    Attributes:
        operation: The layer, or the module and the function called in it.
        reason: Why.
        touches_gates: Whether it reads or makes channels that a gate could otherwise have removed.
    """

    operation: str
    reason: str
    touches_gates: bool


@dataclass(frozen=True)
class CoupledValue:
    """Channels that several gated layers read: one goes only if all of the readers close it.

    Attributes:
        origins: What produces them; several, if they are summed (a residual stream).
        channels: How many.
        readers: The gated layers.
    """

    origins: tuple[str, ...]
    channels: int
    readers: tuple[str, ...]


@dataclass(frozen=True)
class ChoiceFound:
    """Operations to choose from.

    Attributes:
        gate: The gate's name, which is the first such choice's.
        options: The operations.
        exclusive: Whether one of them is chosen, and not any.
        places: Names of all choices that share the gate.
    """

    gate: str
    options: tuple[str, ...]
    exclusive: bool
    places: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What a search would work on.

    Attributes:
        model: The network, as it was named, or its class.
        inputs: Shapes of the example inputs, without the batch.
        params: Parameters of the network.
        macs: Its multiply-adds for one example.
        units: U, the number of binary variables.
        logits: Granularity to the number of logits that the posterior would have.
        log10_architectures: log10 of the number of architectures: 2^U without choices.
        smallest_params: Parameters with one unit of each gate left.
        smallest_macs: Multiply-adds with one unit of each gate left.
        gated: The layers with gates, in order of execution.
        choices: The operations to choose from.
        ungated: The layers without.
        barriers: What could not be followed.
        coupled: Channels with several readers.
        tied_gates: Layers that share a gate.
        tied_weights: Names of parameters that are one tensor.
        notes: How the network was traced, and what was changed to fit it to the inputs.
    """

    model: str
    inputs: tuple[tuple[int, ...], ...]
    params: int
    macs: int
    units: int
    logits: dict[str, int]
    log10_architectures: float
    smallest_params: int
    smallest_macs: int
    gated: tuple[GatedLayer, ...]
    choices: tuple[ChoiceFound, ...]
    ungated: tuple[UngatedLayer, ...]
    barriers: tuple[BarrierFound, ...]
    coupled: tuple[CoupledValue, ...]
    tied_gates: tuple[tuple[str, ...], ...]
    tied_weights: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """A few lines: sizes, gates, what is not shrunk, notes."""
        shapes, layers = ", ".join(map(str, self.inputs)), f"{len(self.gated)} layers"
        left = f"{self.smallest_params:,} parameters and {self.smallest_macs:,} multiply-adds"
        lines = [
            f"{self.model} on {shapes}: {self.params:,} parameters, {self.macs:,} multiply-adds",
            f"{layers} and {len(self.choices)} choices gated: {self.units:,} binary variables",
            f"with one unit of each gate {left} are left",
            *_shortened("not gated", [f"{entry.layer} ({entry.reason})" for entry in self.ungated]),
            *_shortened("kept whole", [f"{entry.operation} ({entry.reason})" for entry in self.barriers]),
        ]
        return "\n".join([*lines, *self.notes])

    def to_json(self) -> dict[str, Any]:
        """A JSON value with all fields, nothing shortened."""
        return {"format": FORMAT, **dataclasses.asdict(self)}


def _shortened(what: str, entries: list[str]) -> list[str]:
    """A line with the first few entries, if there are any."""
    more = [f"and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
    return [f"{what}: {'; '.join([*entries[:SHOWN], *more])}"] if entries else []


def inspect_supernet(supernet: Supernet, *, model: str, params: int, notes: tuple[str, ...] = ()) -> Inspection:
    """What a supernet would search.

    Args:
        supernet: The supernet; only its structure matters.
        model: What to call the network.
        params: Parameters of the network as it was handed in, layers that do not run included.
        notes: Notes on how the network was built.
    """
    graph, space = supernet.graph, supernet.space
    units = supernet.gates.units
    groups = sum(len(spec.groups) for spec in space.gates)
    options = sum(spec.units for spec in space.gates if spec.exclusive)
    smallest = supernet.count(Architecture(supernet.gates.sizes, dict.fromkeys(supernet.gates.sizes, (0,))))
    return Inspection(
        model=model,
        inputs=tuple(tuple(x.shape[1:]) for x in graph.trace.inputs),
        params=params,
        macs=sum(graph.macs(name) for name in graph.ops),
        units=units,
        logits={"channel": units, "group": groups + options, "product": units + groups},
        log10_architectures=sum(math.log10(s.units) if s.exclusive else s.units * math.log10(2) for s in space.gates),
        smallest_params=smallest.params,
        smallest_macs=smallest.macs,
        gated=tuple(_gated(supernet, site) for site in space.sites),
        choices=tuple(
            ChoiceFound(spec.name, spec.options, spec.exclusive, _places(supernet, spec.name))
            for spec in space.gates
            if spec.options
        ),
        ungated=tuple(_ungated(graph, entry.layer, entry.reason) for entry in space.ungated),
        barriers=_barriers(graph, space.sites),
        coupled=tuple(
            CoupledValue(tuple(operation_label(graph, name) for name in value.origins), value.channels, value.readers)
            for value in coupled_values(graph, space.sites)
        ),
        tied_gates=_together([(site.gate, site.layer) for site in space.sites]),
        tied_weights=_together(
            [(id(p), name) for name, p in graph.trace.module.named_parameters(remove_duplicate=False)]
        ),
        notes=(*notes, *graph.trace.notes, *_on_streams(supernet)),
    )


def _on_streams(supernet: Supernet) -> Iterator[str]:
    """What a search under a cap has beyond these gates, if streams have none here."""
    if any(site.streams for site in supernet.space.sites) or supernet.gates.granularity not in STREAM_GRANULARITIES:
        return
    more = sum(spec.units for spec in add_streams(supernet.graph, supernet.space).gates) - supernet.gates.units
    if more:
        yield f"under a cap whole streams have gates as well: {more:,} more binary variables"


def _places(supernet: Supernet, gate: str) -> tuple[str, ...]:
    """The names of the choices that share a gate."""
    found = (site.layer.rpartition(".")[0] for site in supernet.space.operations if site.gate == gate)
    return tuple(dict.fromkeys(found))


def _gated(supernet: Supernet, site: Site) -> GatedLayer:
    graph = supernet.graph
    op, layer = graph.ops[site.node], graph.layer(graph.nodes[site.node])
    assert isinstance(op, Dense)
    assert layer is not None
    units = supernet.gates.sizes[site.gate]
    if op.groups > 1:
        runs = [(op.inputs[0], units)]
    else:
        per_unit = op.values[0].channels // units
        runs = [(run.origin, run.channels // per_unit) for run in graph.sources(op.inputs[0])]
    sources = tuple(SourceUnits(operation_label(graph, origin), count) for origin, count in runs)
    return GatedLayer(site.layer, layer_kind(layer), site.gate, units, _params(layer), graph.macs(site.node), sources)


def _ungated(graph: ChannelGraph, name: str, reason: str) -> UngatedLayer:
    nodes = [node for node in graph.graph.nodes if node.op == "call_module" and str(node.target) == name]
    layer = graph.layer(nodes[0]) if nodes else None
    if layer is None:
        return UngatedLayer(name, "", reason, 0, 0)
    return UngatedLayer(name, layer_kind(layer), reason, _params(layer), sum(graph.macs(node.name) for node in nodes))


def _barriers(graph: ChannelGraph, sites: tuple[Site, ...]) -> tuple[BarrierFound, ...]:
    gated = gated_values(graph, sites)
    found = []
    for name, reason in graph.barriers.items():
        op = graph.ops[name]
        assert isinstance(op, Barrier)
        touches = name in gated or any(source in gated for source in op.inputs)
        found.append(BarrierFound(operation_label(graph, name), reason, touches))
    return tuple(found)


def operation_label(graph: ChannelGraph, name: str) -> str:
    """An operation as its user knows it: the layer's name, or the module it is called in and what is called."""
    node = graph.nodes[name]
    if node.op in ("call_module", "get_attr"):
        return str(node.target)
    if node.op == "placeholder":
        return f"input {node.target}"
    what = describe(node, None).removeprefix("function ").removeprefix("tensor method ")
    where = _module_of(node)
    return f"{where}: {what}" if where else what


def _module_of(node: fx.Node) -> str:
    """The module in whose forward an operation is; empty for the network itself."""
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(stack.values())), "")


def layer_kind(layer: nn.Module) -> str:
    """What a layer is, in a word or two."""
    if isinstance(layer, nn.Linear):
        return "linear"
    if not isinstance(layer, Conv | ConvTranspose):
        return type(layer).__name__
    size = "x".join(str(side) for side in layer.kernel_size)
    transposed = " transposed" if isinstance(layer, ConvTranspose) else ""
    if layer.groups > 1 and layer.groups == layer.in_channels:
        return f"depthwise {size}{transposed}"
    groups = f" groups {layer.groups}" if layer.groups > 1 else ""
    return f"conv {size}{transposed}{groups}"


def _params(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters())


def _together(pairs: list[tuple[Any, str]]) -> tuple[tuple[str, ...], ...]:
    """The names that share a key, where several do."""
    found: dict[Any, list[str]] = {}
    for key, name in pairs:
        found.setdefault(key, []).append(name)
    return tuple(tuple(names) for names in found.values() if len(names) > 1)
