"""The channel analysis of a traced network: one :class:`ChannelOp` a node, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from pgnas.nn.channels.ops import UNTRACKED, Barrier, ChannelOp, Follow, Value, find_rule
from pgnas.nn.trace import Trace

if TYPE_CHECKING:
    from pgnas.nn.rebuild import Builder


@dataclass(frozen=True)
class Source:
    """A run of channels that one operation produced, as seen by a later reader.

    Attributes:
        origin: Name of the producing node (a convolution, an addition, an input).
        start: The first channel of the run in the reader's value.
        channels: The length of the run.
    """

    origin: str
    start: int
    channels: int


@dataclass(frozen=True)
class Origin(Barrier):
    """A network input or a constant of the model: it reads nothing. An input is never cut, an attribute is."""

    is_input: bool = True

    def push(self, rows: list[Tensor]) -> Tensor:
        """Inputs depend on the data; attributes count as if they did, since they are trained."""
        return torch.ones(self.value.channels, 1, dtype=torch.long)

    def widen(self, need: Tensor) -> Tensor:
        """Inputs come whole."""
        return super().widen(need) if self.is_input else need

    def build(self, builder: Builder, kept: Tensor, reads: list[Tensor]) -> fx.Node:
        """Copy the input, or cut the attribute."""
        return builder.copy(self, reads) if self.is_input else builder.cut_attribute(self, kept)


class ChannelGraph:
    """Every node's channel rule, in graph order. Immutable once made.

    Args:
        trace: The traced network.

    Attributes:
        ops: Node name to its rule, in topological order.
        barriers: Node name to the reason why it is not shrunk.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.graph = trace.module.graph
        self.nodes: dict[str, fx.Node] = {node.name: node for node in self.graph.nodes}
        self.ops: dict[str, ChannelOp] = {}
        self._calls = _count_calls(self.graph)
        self._shared = _shared_parameters(trace.module)
        for node in self.graph.nodes:
            self.ops[node.name] = self._analyse(node)
        self.barriers: Mapping[str, str] = {
            name: op.reason for name, op in self.ops.items() if isinstance(op, Barrier) and op.reason
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> ChannelGraph:
        return self

    def layer(self, node: fx.Node) -> nn.Module | None:
        """The layer that a ``call_module`` node calls."""
        return self.trace.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def value(self, node: fx.Node | str) -> Value:
        """Where a node's value keeps its channels."""
        op = self.ops.get(node if isinstance(node, str) else node.name)
        return op.value if op is not None else UNTRACKED

    def shape(self, node: fx.Node | str) -> tuple[int, ...] | None:
        """The shape of a node's value on the example inputs; None if it is no tensor."""
        found = self.nodes[node] if isinstance(node, str) else node
        shape: tuple[int, ...] | None = found.meta.get("shape")
        return shape

    def tensor_inputs(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The nodes that ``node`` reads whose values hold tensors or shapes of tensors."""
        return tuple(dict.fromkeys(node.all_input_nodes))

    def follow(self, node: fx.Node, *, module: str | None = None) -> ChannelOp | str:
        """The rule of an operation that treats each channel of its first input alone and keeps their number and axis."""
        source = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(source, fx.Node):
            return "its input is not a value of the graph"
        value, before, after = self.value(source), self.shape(source), self.shape(node)
        if value.axis is None or before is None or after is None:
            return "its input's channels could not be followed"
        if len(after) <= value.axis or after[value.axis] != value.channels:
            return f"it changes the channel axis from {before} to {after}"
        others = [n for n in self.tensor_inputs(node) if n is not source]
        if any(not n.meta.get("is_static", False) for n in others):
            return "it reads more than one tensor"
        return Follow(node.name, (source.name,), (value,), value, module=module)

    def sources(self, name: str) -> list[Source]:
        """Where the channels of a value come from: one run a source of the concatenations behind it."""
        op = self.ops[name]
        runs = op.source_runs()
        if runs is None:
            return [Source(name, 0, op.value.channels)]
        found, start = [], 0
        for source, channels_per_channel in runs:
            for run in self.sources(source):
                length = run.channels * channels_per_channel
                found.append(Source(run.origin, start, length))
                start += length
        return found

    def _analyse(self, node: fx.Node) -> ChannelOp:
        if node.op in ("placeholder", "get_attr"):
            return self._origin(node)
        reason = self._refusal(node)
        if reason is None:
            found_rule = find_rule(node, self.layer(node))
            if found_rule is None:
                reason = f"no rule for {describe(node, self.layer(node))}"
            else:
                found = found_rule(node, self)
                if isinstance(found, ChannelOp):
                    return found
                reason = found
        return self._barrier(node, reason)

    def _refusal(self, node: fx.Node) -> str | None:
        if node.op == "output":
            return ""
        layer = self.layer(node)
        if layer is None or not any(True for _ in layer.parameters()):
            return None
        if self._calls[str(node.target)] > 1:
            return f"its layer is called {self._calls[str(node.target)]} times with the same weights"
        if any(id(p) in self._shared for p in layer.parameters()):
            return "its weights are shared with another layer"
        return None

    def _barrier(self, node: fx.Node, reason: str) -> Barrier:
        inputs = self.tensor_inputs(node)
        shape = self.shape(node)
        if shape is None or len(shape) < 2:
            value = UNTRACKED
        else:
            axis = self._guess_axis(node, len(shape))
            value = Value(axis, shape[axis])
        if shape is None and node.op != "output" and all(self.shape(n) is None for n in inputs):
            reason = ""  # arithmetic on shapes: nothing to shrink
        names = tuple(n.name for n in inputs)
        return Barrier(node.name, names, tuple(self.value(n) for n in inputs), value, reason)

    def _guess_axis(self, node: fx.Node, dimensions: int) -> int:
        """The channel axis of a barrier's value; any guess is correct, since a barrier gives all channels or none."""
        layers = [self.layer(node), *(self.layer(user) for user in node.users)]
        channels_last = dimensions == 3 or any(isinstance(x, nn.Linear | nn.LayerNorm) for x in layers)
        return dimensions - 1 if channels_last else 1

    def _origin(self, node: fx.Node) -> ChannelOp:
        shape = self.shape(node)
        is_input = node.op == "placeholder"
        value = Value(1, shape[1]) if is_input and shape is not None and len(shape) >= 2 else UNTRACKED
        return Origin(node.name, (), (), value, is_input=is_input)

    def track_attribute(self, node: fx.Node, axis: int) -> None:
        """Follow the channels of a constant of the model (a layer scale) that is read once, along ``axis``."""
        shape = self.shape(node)
        if node.op == "get_attr" and len(node.users) == 1 and shape is not None and 0 <= axis < len(shape):
            self.ops[node.name] = Origin(node.name, (), (), Value(axis, shape[axis]), is_input=False)


def describe(node: fx.Node, layer: nn.Module | None) -> str:
    """What a node is, for a person."""
    if layer is not None:
        return f"layer type {type(layer).__name__}"
    if node.op == "call_method":
        return f"tensor method {node.target}()"
    return f"function {getattr(node.target, '__name__', node.target)}()"


def _count_calls(graph: fx.Graph) -> dict[str, int]:
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    return calls


def _shared_parameters(module: nn.Module) -> set[int]:
    """Parameters that more than one layer owns."""
    owners: dict[int, int] = {}
    for layer in module.modules():
        for parameter in layer.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {key for key, count in owners.items() if count > 1}
