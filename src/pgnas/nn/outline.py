"""A network's operations as people draw them, with what an architecture leaves of each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from pgnas.architecture import Architecture
from pgnas.nn.channels import Barrier, ChannelGraph, Dense, Follow, describe
from pgnas.nn.channels.rules_shapes import Concat, Elementwise
from pgnas.nn.choice import GATES, OutputGate
from pgnas.nn.inspection import layer_kind, operation_label
from pgnas.nn.macs import Conv, ConvTranspose
from pgnas.nn.supernet import Supernet


@dataclass(frozen=True)
class Operation:
    """One operation of the drawing.

    Attributes:
        name: The layer's name, or the module it is called in and what is called.
        kind: What it is, such as ``conv 3x3`` or ``concat``.
        inputs: The places, in the drawing's order, of what it reads.
        reads: Channels that it reads in the full network; 0 if it has no weights over them.
        kept_reads: How many of them it still reads.
        makes: Channels that it makes in the full network.
        kept_makes: How many of them it still makes; none: it is dropped.
        gate: The gate at its input, if it has one.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    reads: int
    kept_reads: int
    makes: int
    kept_makes: int
    gate: str | None


def outline(supernet: Supernet, architecture: Architecture) -> list[Operation]:
    """The operations worth drawing, inputs before their readers.

    Those are the layers with weights over channels, whatever joins several values, poolings, and what could not be
    followed. Activations, normalisations and reshapes belong to the operation before them.
    """
    graph, plan = supernet.graph, supernet.plan(architecture)
    gates = {site.node: site.gate for site in supernet.space.sites}
    places: dict[str, int] = {}
    drawn: list[Operation] = []
    sources = _drawn_sources(graph)
    for name, inputs in sources.items():
        op, node = graph.ops[name], graph.nodes[name]
        is_output = node.op == "output"
        reads = op.values[0].channels if isinstance(op, Dense) else 0
        places[name] = len(drawn)
        drawn.append(
            Operation(
                name=operation_label(graph, name).replace(f"{GATES}.", ""),
                kind=_kind(graph, name),
                inputs=tuple(places[source] for source in inputs),
                reads=reads,
                kept_reads=int(plan.reads[name][0].sum()) if reads and plan.reads[name] else 0,
                makes=op.value.channels,
                kept_makes=op.value.channels if is_output else int(plan.computed[name].sum()),
                gate=gates.get(name),
            )
        )
    return drawn


def _drawn_sources(graph: ChannelGraph) -> dict[str, tuple[str, ...]]:
    """The operations to draw, each with those it reads, past what is not drawn."""
    nearest: dict[str, tuple[str, ...]] = {}
    drawn: dict[str, tuple[str, ...]] = {}
    for name, op in graph.ops.items():
        if graph.nodes[name].op == "get_attr":
            nearest[name] = ()
            continue
        sources = tuple(dict.fromkeys(source for part in op.inputs for source in nearest[part]))
        if _is_drawn(graph, name, sources):
            drawn[name] = _through_shorter(graph, name, sources, drawn) if isinstance(op, Concat) else sources
            nearest[name] = (name,)
        else:
            nearest[name] = sources
    return drawn


def _is_drawn(graph: ChannelGraph, name: str, sources: tuple[str, ...]) -> bool:
    op, node, layer = graph.ops[name], graph.nodes[name], graph.layer(graph.nodes[name])
    if _is_partial_sum(graph, name):
        return False
    if isinstance(layer, OutputGate):  # of an identity or a pooling; what else a choice offers is drawn by itself
        inside = str(node.target).replace(f"{GATES}.", "")
        return not any(f"{graph.nodes[source].target}.".startswith(f"{inside}.") for source in sources)
    if node.op in ("placeholder", "output") or isinstance(op, Dense) or len(sources) > 1:
        return True
    if isinstance(layer, Conv | ConvTranspose):
        return True
    if isinstance(op, Barrier):
        return bool(op.reason) and graph.shape(name) is not None
    return isinstance(op, Follow) and (graph.shape(name) or ())[2:] != (graph.shape(op.inputs[0]) or ())[2:]


def _is_partial_sum(graph: ChannelGraph, name: str) -> bool:
    """Whether an addition only feeds another: ``(a + b) + c`` is drawn as one sum."""
    users = list(graph.nodes[name].users)
    return _is_sum(graph, name) and len(users) == 1 and _is_sum(graph, users[0].name)


def _is_sum(graph: ChannelGraph, name: str) -> bool:
    return isinstance(graph.ops[name], Elementwise) and _called(graph.nodes[name]) == "add"


def _called(node: fx.Node) -> str:
    return describe(node, None).removeprefix("function ").removeprefix("tensor method ").removesuffix("()")


def _through_shorter(
    graph: ChannelGraph, name: str, sources: tuple[str, ...], drawn: dict[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """A concatenation that begins or ends as an earlier one is drawn as reading that one.

    What is the same: ``[a, b, c] = [[a, b], c]``. Otherwise the arrows of a DenseNet grow with the square of its depth.
    """
    earlier = [other for other in drawn if isinstance(graph.ops[other], Concat)]
    whole = {other: _flat(graph, other, drawn) for other in earlier}
    for other in sorted(earlier, key=lambda other: len(whole[other]), reverse=True):
        known = whole[other]
        if 1 < len(known) < len(sources) and known in (sources[: len(known)], sources[-len(known) :]):
            begins = sources[: len(known)] == known
            rest = sources[len(known) :] if begins else sources[: -len(known)]
            return (other, *rest) if begins else (*rest, other)
    return sources


def _flat(graph: ChannelGraph, name: str, drawn: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """What a drawn concatenation joins, concatenations resolved."""
    if not isinstance(graph.ops[name], Concat):
        return (name,)
    return tuple(part for source in drawn[name] for part in _flat(graph, source, drawn))


def _kind(graph: ChannelGraph, name: str) -> str:
    node = graph.nodes[name]
    layer = graph.layer(node)
    if node.op in ("placeholder", "output"):
        return "input" if node.op == "placeholder" else "output"
    if isinstance(graph.ops[name], Concat):
        return "concat"
    if isinstance(layer, OutputGate):
        return layer.options[layer.index]
    if layer is not None:
        return layer_kind(layer)
    return "sum" if _is_sum(graph, name) else _called(node)
