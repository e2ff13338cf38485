"""Rules of operations that take a part of a value: slices, chunks and splits."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx

from pgnas.nn.channels.graph import ChannelGraph
from pgnas.nn.channels.ops import ChannelOp, Value, first_input, rule

if TYPE_CHECKING:
    from pgnas.nn.rebuild import Builder

_SPLITS = (torch.chunk, torch.split, torch.functional.split, "chunk", "split")


@dataclass(frozen=True)
class Narrow(ChannelOp):
    """Some of the input's channels, in order.

    Attributes:
        taken: Which, as a range of the input's channels.
    """

    copies_arguments: ClassVar[bool] = False
    taken: range

    def push(self, rows: list[Tensor]) -> Tensor:
        """The rows of the channels taken."""
        return rows[0][list(self.taken)]

    def pull(self, rows: Tensor) -> list[Tensor]:
        """Nothing of the other channels."""
        read = rows.new_zeros(self.values[0].channels, rows.shape[1])
        read[list(self.taken)] = rows
        return [read]

    def build(self, builder: Builder, kept: Tensor, reads: list[Tensor]) -> fx.Node:
        """Select what is kept of the channels taken."""
        return builder.fetch(self.inputs[0], reads[0])


@rule(*_SPLITS)
def split(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Chunks and splits: whoever picks a part reads the channels of that part."""
    source = first_input(node)
    if source is not None and all(_part(user, graph) is not None for user in node.users):
        return ""
    return "it splits an axis that is not the channels'"


@rule(operator.getitem)
def getitem(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Slices of any axis but the batch, and the parts of a split along the channels."""
    source, index = node.args[0], node.args[1]
    if not isinstance(source, fx.Node) or graph.shape(node) is None:
        return ""  # a number of a shape
    if graph.shape(source) is None:
        return _part(node, graph) or ""
    value = graph.value(source)
    items: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
    if value.axis is None or not all(isinstance(item, slice) for item in items):
        return "it picks single elements"
    if items[0] != slice(None):
        return "it takes a part of the batch"
    if value.axis >= len(items) or items[value.axis] == slice(None):
        return graph.follow(node)
    if any(item != slice(None) for axis, item in enumerate(items) if axis != value.axis) or value.block > 1:
        return "it takes a part of the channels and of another axis"
    part = items[value.axis]
    if not all(bound is None or isinstance(bound, int) for bound in (part.start, part.stop, part.step)):
        return "it takes a part of the channels that depends on a size"
    return _narrow(node, source, value, range(value.channels)[part])


def _part(node: fx.Node, graph: ChannelGraph) -> Narrow | None:
    """The channels that ``split(x, ..., dim)[index]`` takes of x; None if that is not what the node is."""
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return None
    parts, index = node.args[0], node.args[1]
    source = first_input(parts) if parts.target in _SPLITS else None
    dim: Any = parts.args[2] if len(parts.args) > 2 else parts.kwargs.get("dim", 0)
    if source is None or not isinstance(index, int) or not isinstance(dim, int):
        return None
    value, shape, shapes = graph.value(source), graph.shape(source), parts.meta.get("part_shapes")
    if value.axis is None or shape is None or shapes is None or value.block > 1 or dim % len(shape) != value.axis:
        return None
    sizes = [part[value.axis] for part in shapes]
    start = sum(sizes[: index % len(sizes)])
    return _narrow(node, source, value, range(start, start + sizes[index]))


def _narrow(node: fx.Node, source: fx.Node, value: Value, taken: range) -> Narrow:
    return Narrow(node.name, (source.name,), (value,), Value(value.axis, len(taken)), taken=taken)
