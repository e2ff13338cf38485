"""Build the small network that a plan describes: a plain module with narrower layers and nothing else of pgnas."""

from __future__ import annotations

import copy
import linecache
import operator
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from pgnas.nn.channels import ChannelGraph, ChannelOp, Dense
from pgnas.nn.channels.movement import Movement
from pgnas.nn.copying import copied
from pgnas.nn.cut import Cut, cut_layer, cut_to
from pgnas.nn.graph_passes import free_name
from pgnas.nn.liveness import Plan


@dataclass(frozen=True)
class SmallNetwork:
    """An extracted network and where its tensors came from.

    Attributes:
        module: The network, in eval mode; its layers keep their names.
        cuts: Layer name to the slices it kept; momentum and the like are cut by the same.
        selections: How many times a reader picks channels of a shared value.
        copied: Node of the supernet to the node of ``module`` that repeats it.
        headed: The network with its auxiliary heads, for its training; it shares the layers of ``module``.
    """

    module: fx.GraphModule
    cuts: dict[str, Cut] = field(repr=False)
    selections: int
    copied: dict[str, str] = field(repr=False)
    headed: fx.GraphModule | None = field(default=None, repr=False)

    def take(self, name: str, tensor: Tensor) -> Tensor:
        """What remains of a tensor shaped like the supernet's parameter ``name`` in the small network."""
        layer, _, leaf = name.rpartition(".")
        return self.cuts.get(layer, Cut()).take(leaf, tensor)

    def put_(self, name: str, tensor: Tensor, small: Tensor) -> None:
        """Write into ``tensor`` what :meth:`take` takes from it."""
        layer, _, leaf = name.rpartition(".")
        self.cuts.get(layer, Cut()).put_(leaf, tensor, small)


class Builder:
    """Builds one small network; rules call its methods from :meth:`ChannelOp.build`.

    Args:
        graph: The analysed network.
        plan: Which channels each node computes and reads.
        root: Owner of the layers to cut.
        constants: Node to its value (rows of one example, ...), for every node with constant channels that are read.
        contributions: Gated node to what its constant inputs add to its output (rows of one example, ...).
        keep_marks: Whether the outputs of operations to choose from stay marked.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        plan: Plan,
        root: nn.Module,
        *,
        constants: dict[str, Tensor],
        contributions: dict[str, Tensor],
        keep_marks: bool = False,
    ) -> None:
        self._graph, self._plan, self._root = graph, plan, root
        self._constants, self._contributions = constants, contributions
        self._keep_marks = keep_marks
        self._new = fx.Graph()
        self._attributes: dict[str, Any] = {}
        self._cuts: dict[str, Cut] = {}
        self._values: dict[str, Any] = {}  # nodes, and numbers that are known
        self._picked: dict[tuple[str, bytes], fx.Node] = {}
        self._selected: dict[fx.Node, tuple[fx.Node, int, Tensor]] = {}
        self._copied: dict[str, fx.Node] = {}
        self._memo: dict[int, Any] = {}  # one for all copies, so that tied weights stay tied
        self._input: fx.Node | None = None

    def build(self) -> SmallNetwork:
        """Build every node that computes something, in order."""
        for name, op in self._graph.ops.items():
            node = self._graph.nodes[name]
            if node.op == "placeholder":
                self._values[name] = self._new.placeholder(str(node.target))
                self._input = self._input or self._values[name]
                continue
            computed = self._plan.computed[name]
            live = op.build(self, computed, self._plan.reads[name]) if computed.any() else None
            value = self._with_constants(op, live)
            if value is not None:
                self._values[name] = value
        for node in reversed(self._new.nodes):  # selections that became part of others
            if not node.users and (node in self._selected or node.op == "get_attr"):
                self._new.erase_node(node)
        module = fx.GraphModule(self._attributes, self._new, class_name=type(self._root).__name__)
        weakref.finalize(module, _forget_source, module.forward.__code__.co_filename)
        module.eval()
        repeated = {name: node.name for name, node in self._copied.items()}
        return SmallNetwork(module, self._cuts, len(self._picked), repeated)

    def copy(self, op: ChannelOp, reads: list[Tensor]) -> fx.Node:
        """The node's own operation on the channels it reads of each input."""
        node = self._graph.nodes[op.name]
        inputs = {source: self.fetch(source, read) for source, read in zip(op.inputs, reads, strict=True) if read.any()}

        def value(old: fx.Node) -> fx.Node:
            return inputs[old.name] if old.name in inputs else self._values[old.name]

        if node.op == "call_module" and str(node.target) not in self._attributes:
            layer = self._root.get_submodule(str(node.target))
            self._attributes[str(node.target)] = copied(layer, self._memo)
        made = self._new.create_node(
            node.op, node.target, map_arg(node.args, value), map_arg(node.kwargs, value), name=node.name
        )
        self._copied[op.name] = made
        return made

    def operation_output(self, op: ChannelOp, reads: list[Tensor]) -> fx.Node:
        """The output of an operation to choose, without its mark unless marks are kept."""
        if not self._keep_marks:
            return self.fetch(op.inputs[0], reads[0])
        mark = str(self._graph.nodes[op.name].target)
        self._attributes[mark] = self._graph.trace.module.get_submodule(mark)  # a supernet has gates in their place
        return self.copy(op, reads)

    def call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """Call a function on new values."""
        return self._new.call_function(function, args)

    def cut_layer(self, target: str, *, kept_in: Tensor, kept_out: Tensor) -> None:
        """Cut a layer to channel masks; the next :meth:`copy` calls the cut one."""
        layer = self._root.get_submodule(target)
        self._cuts[target] = cut_to(layer, kept_in, kept_out)
        self._attributes[target] = cut_layer(layer, self._cuts[target])

    def cut_attribute(self, op: ChannelOp, kept: Tensor) -> fx.Node:
        """A constant of the model, cut along its channel axis."""
        target = str(self._graph.nodes[op.name].target)
        owner, _, leaf = target.rpartition(".")
        old = getattr(self._root.get_submodule(owner), leaf)
        if op.value.axis is None:
            self._attributes[target] = copy.deepcopy(old, self._memo)
            return self._new.get_attr(target)
        before = self._cuts.get(owner, Cut())
        slices = {op.value.axis: kept.nonzero()[:, 0]}
        self._cuts[owner] = Cut({**before.slices, leaf: slices}, before.attributes)
        new = self._cuts[owner].take(leaf, old)
        self._attributes[target] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        return self._new.get_attr(target)

    def fetch(self, source: str, wanted: Tensor, *, as_view: bool = False) -> fx.Node:
        """The value of ``source`` with exactly the ``wanted`` channels, selecting if it has others too.

        Args:
            source: Its name.
            wanted: The channels, bool.
            as_view: Whether a part of the value may be taken where it lies, if these channels lie side by side.
        """
        kept, axis = self._plan.kept(source), self._graph.ops[source].value.axis
        whole: fx.Node = self._values[source]
        if torch.equal(kept, wanted) or axis is None:
            return whole
        key = (source, wanted.numpy().tobytes())
        if key not in self._picked:
            positions = kept.cumsum(0)[wanted] - 1
            if as_view and int(positions[-1] - positions[0]) + 1 == len(positions):
                return self.call(torch.narrow, whole, axis, int(positions[0]), len(positions))
            self._picked[key] = self._select(whole, axis, positions, f"kept_{len(self._picked)}")
        return self._picked[key]

    def fetch_in_order(self, source: str, channels: Tensor, *, as_view: bool = False) -> fx.Node:
        """As :meth:`fetch`, the channels in the order given."""
        wanted = torch.zeros(self._graph.ops[source].value.channels, dtype=torch.bool)
        wanted[channels] = True
        value, axis = self.fetch(source, wanted, as_view=as_view), self._graph.ops[source].value.axis
        if axis is None or bool((channels.diff() > 0).all()):
            return value
        return self._select(value, axis, channels.argsort().argsort(), f"order_{len(self._attributes)}")

    def rearrange(self, value: fx.Node, movement: Movement, *, in_order: bool = False) -> fx.Node:
        """Split, permute and merge axes; the numbers may have to be in order in memory."""
        for axis in reversed(range(len(movement.before))):
            atoms = movement.before[axis]
            if len(atoms) > 1:
                sizes = tuple(-1 if atom.is_batch else atom.size for atom in atoms)
                value = self._new.call_method("unflatten", (value, axis, sizes))
        before = [atom for atoms in movement.before for atom in atoms]
        order = [before.index(atom) for atoms in movement.after for atom in atoms]
        if order != sorted(order):
            value = self._new.call_method("permute", (value, *order))
        stop = len(order)
        for atoms in reversed(movement.after):
            start = stop - len(atoms)
            if not atoms:
                value = self._new.call_method("unsqueeze", (value, start))
            elif len(atoms) > 1:
                value = self.call(torch.flatten, value, start, stop - 1)
            stop = start
        return self._new.call_method("contiguous", (value,)) if in_order else value

    def without_zero_addend(self, op: ChannelOp, reads: list[Tensor]) -> fx.Node | None:
        """For a sum of two values, one of which is the constant 0: the other, if it has the sum's shape."""
        node = self._graph.nodes[op.name]
        if node.target not in (operator.add, torch.add) or len(op.inputs) != 2 or node.kwargs:
            return None
        for zero, other, read, rest in ((0, 1, reads[0], reads[1]), (1, 0, reads[1], reads[0])):
            name = op.inputs[zero]
            is_constant = not self._plan.computed[name].any()
            given, made = ((self._graph.shape(x), self._graph.is_batched(x)) for x in (op.inputs[other], op.name))
            if is_constant and given == made and not self._constant(name, read).any():
                return self.fetch(op.inputs[other], rest)
        return None

    def add_contribution(self, op: Dense, value: fx.Node, kept: Tensor) -> fx.Node:
        """Add what the constant inputs of a gated layer contribute to its kept outputs."""
        contribution = self._contributions.get(op.name)
        assert op.value.axis is not None
        if contribution is None:
            return value
        cut = contribution.index_select(op.value.axis, kept.nonzero()[:, 0].to(contribution.device))
        if not cut.any():
            return value
        added = self._repeated(op.name, _shrink(cut, op.value.axis), f"contribution_{op.name}")
        return self.call(operator.add, value, added)

    def _with_constants(self, op: ChannelOp, live: fx.Node | int | None) -> fx.Node | int | None:
        """The computed channels and the constant ones in their original order."""
        constant = self._plan.constant[op.name]
        if not constant.any():
            return live
        axis, shape = op.value.axis, self._graph.shape(op.name)
        assert axis is not None
        assert shape is not None
        value = _shrink(self._constant(op.name, constant), axis)
        sizes = [-1 if i == axis else size for i, size in enumerate(shape)]
        repeated = self._repeated(op.name, value, f"constant_{op.name}")
        fixed = self._new.call_method("expand", (repeated, self._rows(op.name, shape[0]), *sizes[1:]))
        if live is None:
            return self._new.call_method("contiguous", (fixed,))  # as a view that follows may need it
        joined = self.call(torch.cat, [live, fixed], axis)
        computed = self._plan.computed[op.name]
        order = torch.cat([computed.nonzero()[:, 0], constant.nonzero()[:, 0]]).argsort()
        return self._select(joined, axis, order, f"order_{op.name}")

    def _repeated(self, name: str, value: Tensor, attribute: str) -> fx.Node:
        """A constant (rows, ...) of one example as a buffer, for all examples of the batch if it has several rows."""
        buffer = self._buffer(attribute, value)
        if value.shape[0] == 1 or not self._graph.is_batched(name):
            return buffer
        assert self._input is not None
        batch = self._new.call_method("size", (self._input, 0))
        return self._new.call_method("repeat", (buffer, batch, *[1] * (value.ndim - 1)))

    def _constant(self, name: str, channels: Tensor) -> Tensor:
        value, axis = self._constants[name], self._graph.ops[name].value.axis
        assert axis is not None
        return value.index_select(axis, channels.nonzero()[:, 0].to(value.device))

    def _rows(self, name: str, rows: int) -> fx.Node | int:
        """The size of a value's first axis, ``rows`` on the example: a multiple of the batch, if it was one."""
        assert self._input is not None
        example = len(self._graph.trace.inputs[0])
        if not self._graph.is_batched(name) or rows % example:
            return rows
        batch = self._new.call_method("size", (self._input, 0))
        return batch if rows == example else self.call(operator.mul, batch, rows // example)

    def _select(self, value: fx.Node, axis: int, index: Tensor, name: str) -> fx.Node:
        inner = self._selected.get(value)
        if inner is not None and inner[1] == axis:  # one selection instead of two
            value, index = inner[0], inner[2][index]
        device = next((p.device for p in self._root.parameters()), torch.device("cpu"))
        selected = self.call(torch.index_select, value, axis, self._buffer(name, index.to(device)))
        self._selected[selected] = value, axis, index
        return selected

    def _buffer(self, name: str, value: Tensor) -> fx.Node:
        """A buffer of its own: an extracted network that is extracted from again has some of these names already."""
        free = free_name(name, lambda new: new in self._attributes or hasattr(self._root, new))
        self._attributes[free] = value.detach().clone()
        return self._new.get_attr(free)


def _forget_source(name: str) -> None:
    """Drop what torch.fx keeps of a network's source for tracebacks, otherwise for ever: thousands come and go."""
    linecache.cache.pop(name, None)
    getattr(getattr(fx.graph_module, "_loader", None), "eval_cache", {}).pop(name, None)


def _shrink(value: Tensor, axis: int) -> Tensor:
    """A (1, ...) map that is the same at every position, as one number a channel; others as they are."""
    channels = value.shape[axis]
    flat = value.movedim(axis, 0).reshape(channels, -1)
    if not torch.equal(flat, flat[:, :1].expand_as(flat)):
        return value
    shape = [1] * value.ndim
    shape[axis] = channels
    return flat[:, 0].reshape(shape)
