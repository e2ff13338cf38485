"""Rules of operations that join values or move axes: concatenation, arithmetic, means, padding, sizes."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pgnas.nn.channels.graph import ChannelGraph
from pgnas.nn.channels.ops import UNTRACKED, ChannelOp, Follow, Number, ReadShape, Value, any_row, first_input, rule
from pgnas.nn.channels.rules_moves import permute

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
        return _side_by_side(node, nodes, graph)
    names = tuple(dict.fromkeys(n.name for n in nodes))
    values = tuple(graph.value(name) for name in names)
    block = values[0].block if all(v.block == values[0].block for v in values) else 1
    parts = tuple(names.index(n.name) for n in nodes)
    return Concat(node.name, names, values, Value(axis, shape[axis], block), parts=parts)


def _side_by_side(node: fx.Node, nodes: list[fx.Node], graph: ChannelGraph) -> ChannelOp | str:
    """Values with the same channels, joined along another axis (but the batch) or along a new one."""
    values = [graph.value(n) for n in nodes]
    first, before, after = values[0], graph.shape(nodes[0]), graph.shape(node)
    if before is None or after is None or first.axis is None or any(v != first for v in values):
        return "it joins values whose channels lie on different axes"
    new = [graph.is_batched(n) for n in nodes]
    if not all(new) or not graph.is_batched(node) or after[0] != before[0]:
        return "it joins batches"
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    shifted = len(after) > len(before) and dim % len(after) <= first.axis
    names = tuple(dict.fromkeys(n.name for n in nodes))
    value = Value(first.axis + shifted, first.channels, first.block)
    return Elementwise(node.name, names, tuple(graph.value(name) for name in names), value)


@rule(torch.stack)
def stack(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Values with the same channels along a new axis."""
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    if not isinstance(tensors, list | tuple) or not all(isinstance(t, fx.Node) for t in tensors):
        return "its operands could not be followed"
    return _side_by_side(node, [t for t in tensors if isinstance(t, fx.Node)], graph)


@rule(
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div,
    operator.mod, torch.maximum, torch.minimum, torch.addcmul, torch.lerp, torch.where, torch.true_divide,
    torch.multiply, torch.subtract, torch.divide, "add", "sub", "mul", "div", "addcmul", "lerp", "where", "maximum",
    "minimum", "true_divide", "multiply", "subtract", "divide", "masked_fill",
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
        if own >= 0 and (graph.value(operand).axis is None or operand.name in graph.constants):
            graph.track_attribute(operand, own)
        value = graph.value(operand)
        size = (graph.shape(operand) or ())[own] if own >= 0 else 1
        if size != value.channels or (size not in (1, shape[axis])) or (size > 1 and value.axis != own):
            return f"the channels of '{operand.name}' could not be followed"
    names = tuple(n.name for n in operands)
    values = tuple(graph.value(n) for n in operands)
    block = next(v.block for v in values if v.channels == shape[axis])
    return Elementwise(node.name, names, values, Value(axis, shape[axis], block))


@rule(
    torch.mean, torch.sum, torch.amax, torch.amin, torch.var, torch.std, torch.logsumexp, torch.prod,
    "mean", "sum", "amax", "amin", "var", "std", "logsumexp", "prod",
)  # fmt: skip
def reduction(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Means and the like over axes other than the channels'."""
    return _reduce(node, graph, node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis")))


@rule(torch.norm, torch.functional.norm, "norm")
def norm(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Norms over axes other than the channels'."""
    return _reduce(node, graph, node.args[2] if len(node.args) > 2 else node.kwargs.get("dim"))


def _reduce(node: fx.Node, graph: ChannelGraph, dims: Any) -> ChannelOp | str:
    source = first_input(node)
    listed = list(dims) if isinstance(dims, list | tuple) else [dims]
    if source is None or not all(isinstance(d, int) for d in listed):
        return "it reduces over all axes"
    before, after, value = graph.shape(source), graph.shape(node), graph.value(source)
    if before is None or after is None or value.axis is None:
        return "its input's channels could not be followed"
    reduced = {d % len(before) for d in listed}
    if value.axis in reduced or 0 in reduced:
        return "it reduces over the channels" if value.axis in reduced else "it reduces over the batch"
    axis = value.axis - (0 if len(after) == len(before) else sum(d < value.axis for d in reduced))
    return Follow(node.name, (source.name,), (value,), Value(axis, value.channels, value.block))


@rule(nn.Softmax, nn.LogSoftmax, F.softmax, F.log_softmax, torch.softmax, F.normalize, "softmax", "log_softmax")
def along_an_axis(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Softmax and normalisation along an axis other than the channels'."""
    return _along(
        node, graph, 2 if node.target is F.normalize else 1, {"dim": 1 if node.target is F.normalize else None}
    )


@rule(torch.roll, torch.flip, torch.cumsum, "roll", "flip", "cumsum")
def shift(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Shifts and sums along axes other than the channels'."""
    return _along(node, graph, 2 if node.target in (torch.roll, "roll") else 1, {"dim": None, "dims": None})


def _along(node: fx.Node, graph: ChannelGraph, position: int, names: dict[str, int | None]) -> ChannelOp | str:
    """Channel by channel, if the axes that a node works along (an argument) are neither the channels' nor the batch."""
    source, layer = first_input(node), graph.layer(node)
    found: Any = node.args[position] if len(node.args) > position else None
    if node.target == "flip" and isinstance(found, int):  # x.flip(2, 3)
        found = node.args[position:]
    for name, default in names.items():
        if found is None:
            found = node.kwargs.get(name, getattr(layer, name, default))
    axes = list(found) if isinstance(found, list | tuple) else [found]
    shape = None if source is None else graph.shape(source)
    if source is None or shape is None or not all(isinstance(axis, int) for axis in axes):
        return "the axes that it works along are not known"
    if any(axis % len(shape) in (0, graph.value(source).axis) for axis in axes):
        return "it works along the channels or the batch"
    return graph.follow(node)


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


@rule("size")
def read_size(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """One size of a value."""
    source, axis = first_input(node), node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    shape = None if source is None else graph.shape(source)
    if source is None or shape is None or not isinstance(axis, int):
        return _read_shape(node, graph)
    value = graph.value(source)
    if value.axis is None:
        return ""
    if axis % len(shape) == value.axis and value.axis > 0:
        return Number(node.name, (), (), UNTRACKED, number=shape[value.axis])
    return ReadShape(node.name, (source.name,), (value,), UNTRACKED)


@rule(getattr)
def read_attribute(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Shape, dtype and device of a value, whose numbers were made sizes of their own before; its transposition."""
    return permute(node, graph) if node.args[1] in ("T", "mT") else _read_shape(node, graph)


def _read_shape(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """All sizes of a value, or something that goes with them."""
    source = first_input(node)
    axis, shape = (None, None) if source is None else (graph.value(source).axis, graph.shape(source))
    if source is None or shape is None or axis is None:
        return ""
    if any(_touches(index, axis, len(shape)) for index in _uses(node)):
        return "its number of channels is read"
    return ReadShape(node.name, (source.name,), (graph.value(source),), UNTRACKED)


def _uses(node: fx.Node) -> list[Any]:
    """What is made of an attribute: slices of a shape, the whole of it (None), or nothing that counts."""
    if len(node.args) > 1 and node.args[1] != "shape":
        return [node.args[1]]
    return [user.args[1] if user.target is operator.getitem and len(user.args) > 1 else None for user in node.users]


def _touches(index: Any, axis: int, dimensions: int) -> bool:
    """Whether ``shape[index]`` may contain the size of ``axis``."""
    if index in ("device", "dtype"):
        return False
    bounds = (index.start, index.stop, index.step) if isinstance(index, slice) else (None,)
    if not all(bound is None or isinstance(bound, int) for bound in bounds):
        return True
    return not isinstance(index, slice) or axis in range(*index.indices(dimensions))
