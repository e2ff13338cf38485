"""Rules of operations that join values or move axes: concatenation, arithmetic, flattening, means, padding, sizes."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pgnas.nn.channels.graph import ChannelGraph
from pgnas.nn.channels.ops import UNTRACKED, ChannelOp, Follow, ReadShape, Value, any_row, first_input, rule

if TYPE_CHECKING:
    from pgnas.nn.rebuild import Builder


@dataclass(frozen=True)
class Concat(ChannelOp):
    """Concatenation along the channel axis.

    Attributes:
        parts: Positions in ``inputs`` of what is joined, in order (an input may occur twice).
    """

    copies_arguments: ClassVar[bool] = False
    parts: tuple[int, ...]

    def push(self, rows: list[Tensor]) -> Tensor:
        """The parts' rows, one after another."""
        return torch.cat([rows[part] for part in self.parts])

    def pull(self, rows: Tensor) -> list[Tensor]:
        """Each part its own run of rows."""
        reads = [rows.new_zeros(value.channels, rows.shape[1]) for value in self.values]
        for part, run in zip(self.parts, self._runs(rows), strict=True):
            reads[part] = torch.maximum(reads[part], run)
        return reads

    def source_runs(self) -> list[tuple[str, int]]:
        """One run a part."""
        return [(self.inputs[part], 1) for part in self.parts]

    def build(self, builder: Builder, kept: Tensor, reads: list[Tensor]) -> fx.Node:
        """Concatenate what is kept of each part."""
        runs = zip(self.parts, self._runs(kept), strict=True)
        parts = [builder.fetch(self.inputs[part], run) for part, run in runs if run.any()]
        return parts[0] if len(parts) == 1 else builder.call(torch.cat, parts, self.value.axis)

    def _runs(self, rows: Tensor) -> tuple[Tensor, ...]:
        return torch.split(rows, [self.values[part].channels for part in self.parts])


@dataclass(frozen=True)
class Elementwise(ChannelOp):
    """Arithmetic of several values with broadcasting; a value with one channel feeds all of them."""

    def push(self, rows: list[Tensor]) -> Tensor:
        """An output depends on the data if any operand does."""
        channels = self.value.channels
        return torch.stack([r if len(r) == channels else r.expand(channels, -1) for r in rows]).amax(0)

    def pull(self, rows: Tensor) -> list[Tensor]:
        """All operands are read."""
        return [rows if value.channels == self.value.channels else any_row(rows) for value in self.values]

    def build(self, builder: Builder, kept: Tensor, reads: list[Tensor]) -> fx.Node:
        """Copy the operation; adding a constant zero is left out."""
        return builder.without_zero_addend(self, reads) or builder.copy(self, reads)


@dataclass(frozen=True)
class Flatten(ChannelOp):
    """(B, C, H, W) to (B, C*H*W): channel c becomes the block of features c*H*W ... (c+1)*H*W - 1."""

    copies_arguments: ClassVar[bool] = False

    @property
    def factor(self) -> int:
        """Features a channel."""
        return self.value.channels // self.values[0].channels

    def push(self, rows: list[Tensor]) -> Tensor:
        """A channel's features depend on what it depends on."""
        return rows[0].repeat_interleave(self.factor, 0)

    def pull(self, rows: Tensor) -> list[Tensor]:
        """A channel is read if any of its features is."""
        return [rows.reshape(-1, self.factor, rows.shape[1]).amax(1)]

    def widen(self, need: Tensor) -> Tensor:
        """Whole blocks."""
        return need.reshape(-1, self.factor).any(1).repeat_interleave(self.factor)

    def source_runs(self) -> list[tuple[str, int]]:
        """The input's channels, each as a block."""
        return [(self.inputs[0], self.factor)]

    def build(self, builder: Builder, kept: Tensor, reads: list[Tensor]) -> fx.Node:
        """Flatten the kept channels."""
        return builder.call(torch.flatten, builder.fetch(self.inputs[0], reads[0]), 1)


@rule(torch.cat, torch.concat, torch.concatenate)
def concatenate(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """torch.cat along the channel axis."""
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    shape = graph.shape(node)
    followed = isinstance(tensors, list | tuple) and all(isinstance(t, fx.Node) for t in tensors)
    if not followed or shape is None or not isinstance(dim, int):
        return "its operands could not be followed"
    assert isinstance(tensors, list | tuple)
    nodes: list[fx.Node] = [t for t in tensors if isinstance(t, fx.Node)]
    axis = dim % len(shape)
    if any(graph.value(n).axis != axis for n in nodes):
        return "it joins values whose channels lie on another axis"
    names = tuple(dict.fromkeys(n.name for n in nodes))
    values = tuple(graph.value(name) for name in names)
    block = values[0].block if all(v.block == values[0].block for v in values) else 1
    parts = tuple(names.index(n.name) for n in nodes)
    return Concat(node.name, names, values, Value(axis, shape[axis], block), parts=parts)


@rule(
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div,
    torch.maximum, torch.minimum, "add", "sub", "mul", "div",
)  # fmt: skip
def arithmetic(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Arithmetic with broadcasting, squeeze-and-excitation included."""
    shape = graph.shape(node)
    if shape is None:
        return ""
    operands = [n for n in graph.tensor_inputs(node) if graph.shape(n) is not None]
    axes = {
        axis + len(shape) - len(graph.shape(n) or ())
        for n in operands
        if (axis := graph.value(n).axis) is not None and graph.value(n).channels > 1
    }
    if len(axes) != 1:
        return "its operands keep their channels on different axes" if axes else "it has one channel"
    axis = axes.pop()
    for operand in operands:
        own = axis - (len(shape) - len(graph.shape(operand) or ()))
        if graph.value(operand).axis is None:
            graph.track_attribute(operand, own)
        value = graph.value(operand)
        size = (graph.shape(operand) or ())[own] if own >= 0 else 1
        if size != value.channels or (size not in (1, shape[axis])) or (size > 1 and value.axis != own):
            return f"the channels of '{operand.name}' could not be followed"
    names = tuple(n.name for n in operands)
    values = tuple(graph.value(n) for n in operands)
    block = next(v.block for v in values if v.channels == shape[axis])
    return Elementwise(node.name, names, values, Value(axis, shape[axis], block))


@rule(torch.flatten, nn.Flatten, "flatten", "view", "reshape", torch.reshape)
def flatten(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Flattening of everything but the batch, however it is written."""
    source = first_input(node)
    if source is None:
        return "its input is not a value of the graph"
    before, after, value = graph.shape(source), graph.shape(node), graph.value(source)
    if before is None or after is None or value.axis != 1:
        return "its input's channels could not be followed"
    if after != (before[0], math.prod(before[1:])):
        return f"it reshapes {before} to {after}"
    factor = math.prod(before[2:])
    return Flatten(node.name, (source.name,), (value,), Value(1, after[1], value.block * factor))


@rule(torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin")
def reduction(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Means and the like over axes other than the channels'."""
    source = first_input(node)
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if source is None or dims is None or isinstance(dims, fx.Node):
        return "it reduces over all axes"
    before, after, value = graph.shape(source), graph.shape(node), graph.value(source)
    if before is None or after is None or value.axis is None:
        return "its input's channels could not be followed"
    reduced = {d % len(before) for d in (dims if isinstance(dims, list | tuple) else [dims])}
    if value.axis in reduced or 0 in reduced:
        return "it reduces over the channels"
    axis = value.axis - (0 if len(after) == len(before) else sum(d < value.axis for d in reduced))
    return Follow(node.name, (source.name,), (value,), Value(axis, value.channels, value.block))


@rule(F.pad)
def pad(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Padding of axes other than the channels'."""
    source, widths = first_input(node), node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
    if source is None or not isinstance(widths, list | tuple):
        return "its input is not a value of the graph"
    axis, shape = graph.value(source).axis, graph.shape(source)
    if axis is None or shape is None or len(widths) // 2 >= len(shape) - axis:
        return "it pads the channels"
    return graph.follow(node)


@rule(getattr, "size")
def read_shape(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Sizes, dtype and device of a value."""
    source = first_input(node)
    axis, shape = (None, None) if source is None else (graph.value(source).axis, graph.shape(source))
    if source is None or shape is None:
        return ""
    what: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", "shape")
    if axis is None:
        return ""
    indices = [_index_of(user) for user in node.users] if what == "shape" else [what]
    if any(_touches(index, axis, len(shape)) for index in indices):
        return "its number of channels is read"
    return ReadShape(node.name, (source.name,), (graph.value(source),), UNTRACKED)


def _index_of(user: fx.Node) -> Any:
    """The index by which a user picks one number of a shape."""
    return user.args[1] if user.target is operator.getitem and len(user.args) > 1 else None


def _touches(index: Any, axis: int, dimensions: int) -> bool:
    """Whether ``shape[index]`` may contain the size of ``axis``."""
    if index in ("device", "dtype"):
        return False
    bounds = (index.start, index.stop, index.step) if isinstance(index, slice) else (index,)
    if not all(bound is None or isinstance(bound, int) for bound in bounds):
        return True
    if isinstance(index, slice):
        return axis in range(*index.indices(dimensions))
    return index is None or index % dimensions == axis
