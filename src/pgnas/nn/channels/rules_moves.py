"""Rules of pure data movement: flattening, views, reshapes, transpositions, channel shuffles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from pgnas.nn.channels.graph import ChannelGraph
from pgnas.nn.channels.movement import Movement
from pgnas.nn.channels.ops import ChannelOp, Follow, Value, first_input, rule
from pgnas.nn.channels.rules_products import leads_to_product

if TYPE_CHECKING:
    from pgnas.nn.rebuild import Builder

_BATCH_MOVED = "the batch is no longer the first axis"


@dataclass(frozen=True)
class Moved(ChannelOp):
    """Numbers at other places: positions of the channel axis hold numbers of certain channels of the input.

    A position may hold several channels (the parts of a radix), and a channel lie at several (the pixels of a
    flattened map).

    Attributes:
        movement: From the input to here.
        positions: Positions of the channel axis, ascending, each as often as it holds channels, shape (P,).
        channels: The input's channel at each of them, shape (P,).
        held: The positions in the order of the input's channels, shape (P,).
        taken: The input's channels that are moved, ascending.
        in_order: Whether the numbers are put in order in memory as well, as a view that follows may need it.
    """

    copies_arguments: ClassVar[bool] = False
    movement: Movement
    positions: Tensor = field(repr=False)
    channels: Tensor = field(repr=False)
    held: Tensor = field(repr=False)
    taken: Tensor = field(repr=False)
    in_order: bool = False

    def push(self, rows: list[Tensor]) -> Tensor:
        """A position depends on what its channels depend on."""
        return _gather(rows[0][self.channels], self.value.channels)

    def pull(self, rows: Tensor) -> list[Tensor]:
        """A channel is read if a position that holds it is."""
        read = rows.new_zeros(self.values[0].channels, rows.shape[1])
        read[self.taken] = _gather(rows[self.held], len(self.taken))
        return [read]

    def widen(self, need: Tensor) -> Tensor:
        """All positions that share a channel with a needed one: what is left must still be a box."""
        rows = need[:, None].long()
        return self.push(self.pull(rows))[:, 0] > 0

    def source_runs(self) -> list[tuple[str, int]] | None:
        """The input's channels, each as a block, if they are in order."""
        factor = self.value.channels // self.values[0].channels  # 0 if several channels lie at one position
        blocks = torch.arange(self.values[0].channels).repeat_interleave(factor)
        return [(self.inputs[0], factor)] if torch.equal(self.channels, blocks) else None

    def build(self, builder: Builder, kept: Tensor, reads: list[Tensor]) -> fx.Node:
        """Select the channels in their new order, then move what is left."""
        axis = self.value.axis
        assert axis is not None
        order = self.channels[kept[self.positions]]
        apart = len(self.movement.channel_axes) == 1
        order = torch.tensor(list(dict.fromkeys(order.tolist()))) if apart else reads[0].nonzero()[:, 0]
        others = math.prod(atom.size for atom in self.movement.channel_atoms if atom not in self.movement.after[axis])
        moved = self.movement.merged(axis, len(order) // others)
        assert moved is not None
        value = builder.fetch_in_order(self.inputs[0], order, as_view=self.movement.taken is not None)
        return builder.rearrange(value, moved.fused(), in_order=self.in_order)


def _gather(rows: Tensor, size: int) -> Tensor:
    """The maximum of each of ``size`` equally long runs of rows."""
    return rows if len(rows) == size else rows.reshape(size, -1, rows.shape[1]).amax(1)


@rule(
    torch.flatten, nn.Flatten, nn.Unflatten, torch.reshape, torch.unflatten, torch.squeeze, torch.unsqueeze,
    "flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as",
)  # fmt: skip
def reshape(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Reshapes, however they are written."""
    after = graph.shape(node)
    return _move(node, graph, lambda movement: movement.reshaped(after or ()))


@rule(
    torch.permute, torch.transpose, torch.movedim, torch.moveaxis, torch.swapaxes, torch.swapdims, torch.t,
    "permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t",
)  # fmt: skip
def permute(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Axes in another order."""
    order = _order(node, len(graph.shape(node) or ()))
    if order is None:
        return "the order of its axes depends on a size"
    source = first_input(node)
    found = _move(node, graph, lambda movement: movement.permuted(order))
    direct = isinstance(found, Moved) and source is not None and found.inputs == (source.name,)
    if not direct or not graph.movements[node.name].keeps_channels_apart:
        return found
    assert isinstance(found, Moved)
    return Follow(found.name, found.inputs, found.values, found.value)


@rule("contiguous")
def contiguous(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Nothing happens to a value, whose channels may lie on several axes."""
    source = first_input(node)
    if source is not None and source.name in graph.movements:
        found = _move(node, graph, lambda movement: movement)
        return replace(found, in_order=True) if isinstance(found, Moved) else found
    return graph.follow(node)


def _order(node: fx.Node, dimensions: int) -> list[int] | None:
    """The order of axes, found by moving a probe whose axes differ in size."""
    if any(n is not first_input(node) for n in node.all_input_nodes):
        return None
    sizes = list(range(2, dimensions + 2))  # tell the axes of a probe apart
    probe = torch.empty(sizes, device="meta")
    args, kwargs = map_arg((node.args, node.kwargs), lambda _: probe)
    function: Any = getattr(torch.Tensor, str(node.target)) if node.op == "call_method" else node.target
    return [sizes.index(size) for size in function(*args, **kwargs).shape]


def _move(node: fx.Node, graph: ChannelGraph, move: Callable[[Movement], Movement | None]) -> ChannelOp | str:
    """The rule of a node that does ``move`` to its first input."""
    source = first_input(node)
    before, after = (None if source is None else graph.shape(source)), graph.shape(node)
    if source is None or before is None or after is None:
        return "its input is not a value of the graph"
    if source.name in graph.unbuilt:
        moved = move(graph.unbuilt[source.name])
        found = _moved(node, graph, moved)
        if isinstance(found, ChannelOp):
            return found
    if any(graph.batch_axes(source)):
        return f"it turns {_shape(before)} into {_shape(after)}: {_BATCH_MOVED}"
    start = graph.movements.get(source.name)
    if start is None or start.keeps_channels_apart:
        axis = graph.value(source).axis
        if axis is None:
            return "its input's channels could not be followed"
        start = Movement.start(source.name, axis, before, is_batched=graph.is_batched(source))
    found = _moved(node, graph, move(start))
    return found if isinstance(found, ChannelOp) else f"it turns {_shape(before)} into {_shape(after)}: {found}"


def pick(node: fx.Node, source: fx.Node, axis: int, position: int, graph: ChannelGraph) -> ChannelOp | None:
    """The rule of a node that picks one of equal parts of the channels, which lie on an axis of a moved value.

    None if that is not what it does.
    """
    start = graph.unbuilt.get(source.name) or graph.movements.get(source.name)
    moved = None if start is None else start.picked(axis, position)
    found = "" if moved is None else _moved(node, graph, moved)
    return found if isinstance(found, ChannelOp) else None


def _moved(node: fx.Node, graph: ChannelGraph, moved: Movement | None) -> ChannelOp | str:
    """The rule of a node whose value is ``moved``, or why it is not built; a part of it may be."""
    after = graph.shape(node)
    if moved is None or after is None:
        return "its axes do not nest"
    axis = _channel_axis(node, moved)
    refusal = _refusal(graph, node, moved, axis)
    if refusal:
        graph.unbuilt[node.name] = moved
        return refusal
    graph.movements[node.name] = moved
    positions, channels = moved.pairs(axis)
    root = graph.value(moved.root)
    value = Value(axis, after[axis], _block(moved, axis, root))
    held = positions[channels.argsort(stable=True)]
    taken = torch.arange(root.channels) if moved.taken is None else moved.taken
    return Moved(
        node.name, (moved.root,), (root,), value, movement=moved, positions=positions, channels=taken[channels],
        held=held, taken=taken,
    )  # fmt: skip


def _channel_axis(node: fx.Node, moved: Movement) -> int:
    """The axis on which channels are followed: that with most of them, or the heads' of an attention."""
    heads = moved.channel_atoms[0]
    if len(moved.channel_axes) > 1 and leads_to_product(node):
        return next(axis for axis in moved.channel_axes if heads in moved.after[axis])
    return moved.channel_axes[0]


def _refusal(graph: ChannelGraph, node: fx.Node, moved: Movement, axis: int) -> str:
    batch = [atom for atom in moved.before[0] if atom.is_batch]
    is_first = not batch or (moved.after[0][:1] == (batch[0],) and graph.is_batched(node))
    if not is_first or any(graph.batch_axes(node)):
        return _BATCH_MOVED
    if batch and axis == 0:
        return "channels become part of the batch"
    if moved.merged(axis, 1) is None:
        return "channels are interleaved with other axes"
    return ""


def _block(moved: Movement, axis: int, root: Value) -> int:
    """Consecutive positions that stem from one channel."""
    count = len(moved.channel_atoms)
    if moved.after[axis][:count] != moved.channel_atoms:
        return 1
    return root.block * math.prod(atom.size for atom in moved.after[axis][count:])


def _shape(shape: Sequence[Any]) -> str:
    """A shape without the batch, which is only the example's."""
    return f"(B, {', '.join(map(str, shape[1:]))})"
