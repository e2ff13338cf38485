"""How an operation's output channels depend on its input channels: the vocabulary of extraction.

Every node of a traced graph gets one :class:`ChannelOp`. Three questions are asked of it:

* ``push``: which output channels depend on the data, given which input channels do (forwards);
* ``pull``: which input channels are read, given which output channels are needed (backwards);
* ``build``: what computes just the needed output channels.

``push`` and ``pull`` work on rows: a tensor with one row a channel and any number of columns, combined by ``max``. With
one 0/1 column they answer for one architecture; with one column a gate they answer symbolically, which is how the
expected cost is found. An operation without a rule is a :class:`Barrier`: it needs everything and is not shrunk, which
is always correct.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument

from pgnas.nn.concrete_tracer import adds_noise
from pgnas.nn.own_layers import own_layer

if TYPE_CHECKING:
    from pgnas.nn.channels.graph import ChannelGraph
    from pgnas.nn.rebuild import Builder


@dataclass(frozen=True)
class Value:
    """Where a tensor value keeps its channels.

    Attributes:
        axis: The channel axis; None when channels could not be followed, and the value counts as one channel.
        channels: The size of that axis.
        block: Consecutive channels that stem from one channel (the pixels of a flattened map); 1 if none do.
    """

    axis: int | None
    channels: int
    block: int = 1


UNTRACKED = Value(None, 1)


@dataclass(frozen=True)
class ChannelOp(ABC):
    """A node's rule, bound to the node.

    Attributes:
        name: The node's name in the traced graph.
        inputs: Names of the tensor-valued nodes it reads, without repetition.
        values: Where each input keeps its channels.
        value: Where the output keeps its channels.
    """

    copies_arguments: ClassVar[bool] = True
    """Whether `build` repeats the node's own call, numbers such as sizes included."""

    name: str
    inputs: tuple[str, ...]
    values: tuple[Value, ...]
    value: Value

    @abstractmethod
    def push(self, rows: list[Tensor]) -> Tensor:
        """Output rows (channels, m) from the inputs' rows, each (input channels, m)."""

    @abstractmethod
    def pull(self, rows: Tensor) -> list[Tensor]:
        """Input rows, each (input channels, m), from the output's rows (channels, m)."""

    def widen(self, need: Tensor) -> Tensor:
        """The channels actually computed when ``need`` (channels,) are wanted; a superset of it."""
        return need

    def source_runs(self) -> list[tuple[str, int]] | None:
        """For operations whose outputs are runs of their inputs' channels: (input, outputs a channel), in order.

        None for operations that make channels of their own (convolutions, sums).
        """
        return None

    @abstractmethod
    def build(self, builder: Builder, kept: Tensor, reads: list[Tensor]) -> fx.Node | int:
        """Add what computes the ``kept`` output channels from the ``reads`` channels of each input."""


def any_row(rows: Tensor) -> Tensor:
    """The column-wise maximum as one row (1, m); 0 stands for nothing."""
    return rows.amax(0, keepdim=True)


def spread(rows: Tensor, channels: int) -> Tensor:
    """The column-wise maximum of all rows, repeated for each of ``channels``."""
    return any_row(rows).expand(channels, -1)


@dataclass(frozen=True)
class Barrier(ChannelOp):
    """An operation that is not understood: all of its inputs feed all of its outputs, and nothing is shrunk.

    Attributes:
        reason: Why, in words for the report.
    """

    reason: str = ""

    def push(self, rows: list[Tensor]) -> Tensor:
        """Never a constant, whatever it reads: only where the batch is known may a constant be written down."""
        return torch.ones(self.value.channels, 1, dtype=torch.long)

    def pull(self, rows: Tensor) -> list[Tensor]:
        """Every input is read."""
        return [spread(rows, value.channels) for value in self.values]

    def widen(self, need: Tensor) -> Tensor:
        """All or nothing."""
        return need.any().expand_as(need)

    def build(self, builder: Builder, kept: Tensor, reads: list[Tensor]) -> fx.Node:
        """Copy the operation."""
        return builder.copy(self, reads)


@dataclass(frozen=True)
class Follow(ChannelOp):
    """Output channel c is computed from input channel c alone: activations, poolings, BatchNorm, depthwise convolution.

    Attributes:
        module: The target of the layer whose own parameters follow the channels (BatchNorm), if any.
    """

    module: str | None = None

    def push(self, rows: list[Tensor]) -> Tensor:
        """Channel by channel."""
        return rows[0]

    def pull(self, rows: Tensor) -> list[Tensor]:
        """Channel by channel."""
        return [rows]

    def source_runs(self) -> list[tuple[str, int]]:
        """The input's."""
        return [(self.inputs[0], 1)]

    def build(self, builder: Builder, kept: Tensor, reads: list[Tensor]) -> fx.Node:
        """Copy the operation; a layer's parameters are cut to the kept channels."""
        if self.module is not None:
            builder.cut_layer(self.module, kept_in=kept, kept_out=kept)
        return builder.copy(self, reads)


@dataclass(frozen=True)
class ReadShape(ChannelOp):
    """Reads a size other than the number of channels: any channel will do."""

    def push(self, rows: list[Tensor]) -> Tensor:
        """A size is no constant to be written down."""
        return torch.ones(1, 1, dtype=torch.long)

    def pull(self, rows: Tensor) -> list[Tensor]:
        """No channel in particular; that one is left is seen to by the plan."""
        return [rows.new_zeros(value.channels, rows.shape[1]) for value in self.values]

    def build(self, builder: Builder, kept: Tensor, reads: list[Tensor]) -> fx.Node:
        """Copy the operation."""
        return builder.copy(self, reads)


@dataclass(frozen=True)
class Number(ChannelOp):
    """The number of channels of a value, in the network as it was: a constant, whatever is left of them.

    Attributes:
        number: It.
    """

    number: int

    def push(self, rows: list[Tensor]) -> Tensor:
        """Known without asking, not written down as a map."""
        return torch.ones(1, 1, dtype=torch.long)

    def pull(self, rows: Tensor) -> list[Tensor]:
        """Nothing is read."""
        return []

    def build(self, builder: Builder, kept: Tensor, reads: list[Tensor]) -> int:
        """Itself."""
        return self.number


def first_input(node: fx.Node) -> fx.Node | None:
    """The value that a node works on: its first argument, or the one called ``input``."""
    source = node.args[0] if node.args else node.kwargs.get("input")
    return source if isinstance(source, fx.Node) else None


def besides_input(node: fx.Node) -> tuple[tuple[Argument, ...], dict[str, Argument]]:
    """The arguments of a node but for :func:`first_input`, in order and by name."""
    return tuple(node.args[1:]), {name: value for name, value in node.kwargs.items() if node.args or name != "input"}


Rule = Callable[[fx.Node, "ChannelGraph"], "ChannelOp | str"]
_RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for layer types, functions, or (as strings) tensor methods.

    The rule is called with the node and the graph analysed so far and returns a :class:`ChannelOp`, or a string: why
    this node cannot be followed, which makes it a :class:`Barrier`.
    """

    def register(function: Rule) -> Rule:
        for target in targets:
            _RULES[target] = function
        return function

    return register


def find_rule(node: fx.Node, module: nn.Module | None) -> Rule | None:
    """The rule for a node, by the nearest registered class of its layer, its function, or its method's name.

    A layer that adds noise in training, by a forward of its own, does not do what a class that it is derived from does.
    """
    if module is not None:
        if type(module) not in _RULES and own_layer(module) is None and adds_noise(module):
            return None
        return next((_RULES[kind] for kind in type(module).__mro__ if kind in _RULES), None)
    target = str(node.target) if node.op == "call_method" else node.target
    return _RULES.get(target)
