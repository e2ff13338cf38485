"""Rules of operations that take a part of a value: slices, single positions, chunks and splits."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx

from pgnas.nn.channels.graph import ChannelGraph
from pgnas.nn.channels.ops import ChannelOp, Follow, Value, first_input, rule
from pgnas.nn.channels.rules_moves import pick

if TYPE_CHECKING:
    from pgnas.nn.rebuild import Builder

_SPLITS = (
    torch.chunk, torch.split, torch.functional.split, torch.tensor_split,
    "chunk", "split", "tensor_split", "split_with_sizes",
)  # fmt: skip
_UNBINDS = (torch.unbind, "unbind")


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
        """Select what is kept of the channels taken; they may lie side by side."""
        return builder.fetch(self.inputs[0], reads[0], as_view=True)


@dataclass(frozen=True)
class Part(Follow):
    """A part of an axis that is not the channels', of a value that was split there.

    Attributes:
        split_axis: The axis.
        start: First position.
        length: How many positions; None for one, without its axis.
    """

    copies_arguments: ClassVar[bool] = False
    split_axis: int = 0
    start: int = 0
    length: int | None = None

    def build(self, builder: Builder, kept: Tensor, reads: list[Tensor]) -> fx.Node:
        """Take the part of the kept channels."""
        value = builder.fetch(self.inputs[0], reads[0])
        if self.length is None:
            return builder.call(torch.select, value, self.split_axis, self.start)
        return builder.call(torch.narrow, value, self.split_axis, self.start, self.length)


@rule(*_SPLITS, *_UNBINDS)
def split(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Chunks and splits: whoever picks a part reads the channels of that part."""
    source = first_input(node)
    if all(_part(user, graph) is not None for user in node.users):
        return ""
    if source is None or graph.value(source).axis is None:
        return "its input's channels could not be followed"
    return "it splits the batch, or channels one by one"


@rule(operator.getitem)
def getitem(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Slices and single positions of any axis but the batch, new axes, and the parts of a split."""
    source, index = node.args[0], node.args[1]
    if not isinstance(source, fx.Node) or graph.shape(node) is None:
        return ""  # a number of a shape
    shape = graph.shape(source)
    if shape is None:
        return _part(node, graph) or ""
    value = graph.value(source)
    items = _full_index(index, len(shape))
    single = [axis for axis, item in enumerate(items or ()) if isinstance(item, int)]
    if items is not None and len(single) == 1 and items.count(slice(None)) == len(shape) - 1 == len(items) - 1:
        picked = pick(node, source, single[0], int(items[single[0]]) % shape[single[0]], graph)
        if picked is not None:
            return picked
    if value.axis is None or items is None:
        return "it picks single elements"
    axes = [position for position, item in enumerate(items) if item is not None]  # of the input, None makes a new one
    if items[0] != slice(None):
        return "it takes a part of the batch"
    own = axes[value.axis]
    axis = sum(not isinstance(item, int) for item in items[:own])
    part = items[own]
    if isinstance(part, int):
        return "it picks a single channel"
    if part == slice(None):
        return Follow(node.name, (source.name,), (value,), Value(axis, value.channels, value.block))
    if any(item != slice(None) for position, item in enumerate(items) if position != own) or value.block > 1:
        return "it takes a part of the channels and of another axis"
    if not all(bound is None or isinstance(bound, int) for bound in (part.start, part.stop, part.step)):
        return "it takes a part of the channels that depends on a size"
    return _narrow(node, source, value, range(value.channels)[part])


@rule(torch.select, torch.narrow, "select", "narrow")
def select(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """One position or a run of an axis."""
    source, dim = first_input(node), node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    shape = None if source is None else graph.shape(source)
    if source is None or shape is None or not isinstance(dim, int) or graph.value(source).axis is None:
        return "its input's channels could not be followed"
    value, axis = graph.value(source), dim % len(shape)
    if axis == value.axis or axis == 0 or len(node.all_input_nodes) > 1:
        return "it takes a part of the channels or of the batch"
    assert value.axis is not None
    gone = len(shape) > len(graph.shape(node) or ()) and axis < value.axis
    return Follow(node.name, (source.name,), (value,), Value(value.axis - gone, value.channels, value.block))


def _full_index(index: Any, dimensions: int) -> list[Any] | None:
    """One item an axis, and None for a new one; None as a whole if an item is anything else."""
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(item is None or item is ... or isinstance(item, int | slice) for item in items):
        return None
    missing = dimensions - sum(item is not None and item is not ... for item in items)
    at = next((position for position, item in enumerate(items) if item is ...), len(items))
    return [*items[:at], *[slice(None)] * missing, *items[at + 1 :]]


def _part(node: fx.Node, graph: ChannelGraph) -> ChannelOp | None:
    """What ``split(x, ..., dim)[index]`` takes of x; None if that is not what the node is."""
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return None
    parts, index = node.args[0], node.args[1]
    is_unbind = parts.target in _UNBINDS
    source = first_input(parts) if is_unbind or parts.target in _SPLITS else None
    where = 1 if is_unbind else 2
    dim: Any = parts.args[where] if len(parts.args) > where else parts.kwargs.get("dim", 0)
    if source is None or not isinstance(index, int) or not isinstance(dim, int):
        return None
    value, shape, shapes = graph.value(source), graph.shape(source), parts.meta.get("part_shapes")
    if shape is None or shapes is None:
        return None
    axis, index = dim % len(shape), index % len(shapes)
    if is_unbind and (picked := pick(node, source, axis, index, graph)) is not None:
        return picked
    if value.axis is None or axis == 0 or axis in graph.batch_axes(source):
        return None
    sizes = [1 if is_unbind else part[axis] for part in shapes]
    start = sum(sizes[:index])
    if axis == value.axis:
        runs = range(start, start + sizes[index])
        return None if is_unbind or value.block > 1 else _narrow(node, source, value, runs)
    made = Value(value.axis - (is_unbind and axis < value.axis), value.channels, value.block)
    length = None if is_unbind else sizes[index]
    return Part(node.name, (source.name,), (value,), made, split_axis=axis, start=start, length=length)


def _narrow(node: fx.Node, source: fx.Node, value: Value, taken: range) -> Narrow:
    return Narrow(node.name, (source.name,), (value,), Value(value.axis, len(taken)), taken=taken)
