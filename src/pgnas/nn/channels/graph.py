"""The channel analysis of a traced network: one :class:`ChannelOp` a node, and what follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pgnas.nn.channels.movement import Movement
from pgnas.nn.channels.ops import UNTRACKED, Barrier, ChannelOp, Follow, Value, find_rule, first_input
from pgnas.nn.concrete_tracer import has_torch_forward
from pgnas.nn.copying import copied
from pgnas.nn.cut import cut_layer, cut_to
from pgnas.nn.own_layers import own_layer
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
        statics: Node name to the nodes whose numbers (sizes) its operation is called with.
        barriers: Node name to the reason why it is not shrunk.
        constants: Nodes that read nothing but constants of the model.
        movements: Node name to how it stems from an earlier value by pure data movement, if it does.
        unbuilt: The same of nodes that are not built so; what picks a part of them may be.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.graph = trace.module.graph
        self.nodes: dict[str, fx.Node] = {node.name: node for node in self.graph.nodes}
        self.ops: dict[str, ChannelOp] = {}
        self.movements: dict[str, Movement] = {}
        self.unbuilt: dict[str, Movement] = {}
        self.constants: set[str] = set()
        self._sources: dict[str, list[Source]] = {}
        self._calls = _count(node.target for node in self.graph.nodes if node.op == "call_module")
        self._shared = _shared_tensors(trace.module)
        self._attribute_reads = _count(node.target for node in self.graph.nodes if node.op == "get_attr")
        for node in self.graph.nodes:
            self.ops[node.name] = self._analyse(node)
            if node.op == "get_attr" or (node.all_input_nodes and self.constants.issuperset(_names(node))):
                self.constants.add(node.name)
        self.statics: Mapping[str, tuple[str, ...]] = {
            name: self._statics(op) if op.copies_arguments else () for name, op in self.ops.items()
        }
        self._inputs = self._find_inputs()
        built = self._built()
        self.barriers: Mapping[str, str] = {
            name: op.reason for name, op in self.ops.items() if isinstance(op, Barrier) and op.reason and name in built
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

    def is_batched(self, node: fx.Node | str) -> bool:
        """Whether the first axis of a node's value is the batch, or a multiple of it."""
        found = self.nodes[node] if isinstance(node, str) else node
        return bool(found.meta.get("is_batched", False))

    def mixes_rows(self, name: str) -> bool:
        """Whether the rows of different examples alternate on the first axis of a node's value."""
        return bool(self.nodes[name].meta.get("rows_mixed", False))

    def batch_axes(self, node: fx.Node) -> tuple[int, ...]:
        """The axes of a node's value that grow with the batch; none where the network is made for one batch size."""
        axes: tuple[int, ...] = node.meta.get("batch_axes", ())
        return axes

    def is_input(self, name: str) -> bool:
        """Whether a value is the network's input, perhaps scaled, normalised or reshaped, before any layer mixed it."""
        return name in self._inputs

    def is_cut(self, name: str) -> bool:
        """Whether a node's layer is cut to the kept channels, and not copied whole."""
        return getattr(self.ops[name], "module", None) is not None

    def example_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a node's value for one example; () if it is no tensor."""
        shape: tuple[int, ...] = self.nodes[name].meta.get("example_shape", ())
        return shape

    def macs(self, name: str) -> int:
        """Multiply-adds of a node for one example, nothing cut."""
        found: int = self.nodes[name].meta.get("macs", 0)
        return found

    def own_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters of a node's layer, or the one that the node reads."""
        node = self.nodes[name]
        layer = self.layer(node)
        if layer is not None:
            return list(layer.parameters())
        value = _attribute(self.trace.module, node) if node.op == "get_attr" else None
        return [value] if isinstance(value, nn.Parameter) else []

    def tensor_inputs(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The nodes that ``node`` reads whose values hold tensors or shapes of tensors."""
        return tuple(dict.fromkeys(node.all_input_nodes))

    def follow(self, node: fx.Node, *, module: str | None = None) -> ChannelOp | str:
        """The rule of an operation that treats each channel of its first input alone, and keeps their axis."""
        source = first_input(node)
        if source is None:
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
        if name not in self._sources:
            self._sources[name] = self._find_sources(name)
        return self._sources[name]

    def _find_sources(self, name: str) -> list[Source]:
        op = self.ops[name]
        runs = op.source_runs()
        if runs is None:
            return [Source(name, 0, op.value.channels)]
        found, start = list[Source](), 0
        for source, channels_per_channel in runs:
            for run in self.sources(source):
                length = run.channels * channels_per_channel
                found.append(Source(run.origin, start, length))
                start += length
        return found

    def _analyse(self, node: fx.Node) -> ChannelOp:
        if node.op in ("placeholder", "get_attr"):
            return self._origin(node)
        if node.op == "output":
            return self._barrier(node, "")
        layer = self.layer(node)
        found: ChannelOp | str = f"no rule for {describe(node, layer)}"
        found_rule = find_rule(node, layer)
        if found_rule is not None:
            found = found_rule(node, self)
        elif node.meta.get("is_identity", False) and not self._holds_channels(node, layer):
            found = self.follow(node)  # stochastic depth and the like: nothing in evaluation
        if layer is not None and getattr(found, "module", None) is not None:
            found = self._refusal(node, layer) or found
        if node.meta.get("is_hooked", False) and not isinstance(found, str):
            found = "its layer has hooks"
        return found if isinstance(found, ChannelOp) else self._barrier(node, found)

    def _holds_channels(self, node: fx.Node, layer: nn.Module | None) -> bool:
        """Whether a layer that nothing cuts has a tensor with an axis as long as its input has channels."""
        source = first_input(node)
        channels = 1 if source is None else self.value(source).channels
        return layer is not None and channels > 1 and any(channels in tensor.shape for tensor in _tensors(layer))

    def _refusal(self, node: fx.Node, layer: nn.Module) -> str | None:
        """Why a layer's own tensors cannot be cut, if they cannot."""
        calls = self._calls[str(node.target)]
        if calls > 1:
            return f"its layer is called {calls} times with the same weights"
        if any(id(tensor) in self._shared for tensor in _tensors(layer)):
            return "its weights are shared with another layer"
        if own_layer(layer) is not None:
            return _own_refusal(layer)
        if "weight" not in layer._parameters or hasattr(layer, "parametrizations"):
            return "its weight is computed from other tensors (weight norm, a parametrization)"
        if "forward" in vars(layer) or not (has_torch_forward(layer) or self._is_norm(node, layer)):
            return "its forward is not that of a torch.nn layer"
        return None

    def _is_norm(self, node: fx.Node, layer: nn.Module) -> bool:
        """Whether a layer is a BatchNorm for all that cutting does: with an activation behind it, say, it still is."""
        shape = self.shape(node)
        return isinstance(layer, _BatchNorm) and shape is not None and _cuts_alike(layer, shape)

    def _barrier(self, node: fx.Node, reason: str) -> Barrier:
        inputs = self.tensor_inputs(node)
        shape = self.shape(node)
        if shape is None or len(shape) < 2:
            value = UNTRACKED
        else:
            axis = self._guess_axis(node, len(shape))
            value = UNTRACKED if axis in self.batch_axes(node) else Value(axis, shape[axis])
        if shape is None and node.op != "output" and all(self.shape(n) is None for n in inputs):
            reason = ""  # arithmetic on shapes: nothing to shrink
        if shape is None and all(user.op == "output" for user in node.users):
            reason = ""  # a container of outputs
        names = tuple(n.name for n in inputs)
        return Barrier(node.name, names, tuple(self.value(n) for n in inputs), value, reason)

    def _guess_axis(self, node: fx.Node, dimensions: int) -> int:
        """The channel axis of a barrier's value; any guess is correct, since a barrier gives all channels or none."""
        layers = [self.layer(node), *(self.layer(user) for user in node.users)]
        channels_last = dimensions == 3 or any(isinstance(x, nn.Linear | nn.LayerNorm) for x in layers)
        return dimensions - 1 if channels_last else 1

    def _built(self) -> set[str]:
        """The nodes behind the output; those between a value and a part of it, say, are passed over."""
        built = {name for name, node in self.nodes.items() if node.op == "output"}
        for name in reversed(self.ops):
            if name in built:
                built.update(self.ops[name].inputs, self.statics[name])
        return built

    def _find_inputs(self) -> set[str]:
        found: set[str] = set()
        for name, op in self.ops.items():
            is_layer = self.nodes[name].op == "call_module"
            mixes = is_layer and not isinstance(op, Follow) and bool(self.own_parameters(name))
            mixes = mixes or (not is_layer and self.macs(name) > 0)  # a convolution with a weight that is computed
            if not mixes and all(source in found for source in op.inputs):
                found.add(name)
        return found

    def _statics(self, op: ChannelOp) -> tuple[str, ...]:
        return tuple(n.name for n in self.nodes[op.name].all_input_nodes if n.name not in op.inputs)

    def _origin(self, node: fx.Node) -> ChannelOp:
        shape = self.shape(node)
        is_input = node.op == "placeholder"
        value = Value(1, shape[1]) if is_input and shape is not None and len(shape) >= 2 else UNTRACKED
        return Origin(node.name, (), (), value, is_input=is_input)

    def track_attribute(self, node: fx.Node, axis: int) -> None:
        """Follow the channels of a constant of the model (a layer scale), read once, perhaps reshaped, on ``axis``."""
        chain = [node]
        while chain[-1].op != "get_attr" and len(chain[-1].all_input_nodes) == 1:
            chain.append(chain[-1].all_input_nodes[0])
        root, shape = chain[-1], self.shape(chain[-1])
        once = all(len(link.users) == 1 for link in chain) and self._attribute_reads.get(str(root.target)) == 1
        if root.op != "get_attr" or not once or shape is None:
            return
        if id(_attribute(self.trace.module, root)) in self._shared:
            return
        before = {link.name: self.ops[link.name] for link in chain}
        for candidate in [axis] if len(chain) == 1 else [i for i, size in enumerate(shape) if size > 1]:
            if not 0 <= candidate < len(shape):
                continue
            self.ops[root.name] = Origin(root.name, (), (), Value(candidate, shape[candidate]), is_input=False)
            for link in reversed(chain[:-1]):
                self.ops[link.name] = self._analyse(link)
            followed = not any(isinstance(self.ops[link.name], Barrier) for link in chain[:-1])
            if followed and self.value(node).axis == axis:
                return
            self.ops.update(before)


def _cuts_alike(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a layer treats each channel alone, with the tensors that its class in torch.nn has: it is tried.

    Args:
        layer: The layer; its tensors' values do not matter.
        shape: Of its input and output, (B, C, ...).
    """
    kept = torch.arange(shape[1]) % 2 == 0
    generator = torch.Generator().manual_seed(0)
    try:
        whole = copied(layer).eval().cpu().double()
        with torch.no_grad():
            for parameter in whole.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
            part = cut_layer(whole, cut_to(whole, kept, kept))(x[:, kept].clone())
            return bool(torch.allclose(whole(x)[:, kept], part))
    except Exception:
        return False


def describe(node: fx.Node, layer: nn.Module | None) -> str:
    """What a node is, for a person."""
    if layer is not None:
        return f"layer type {type(layer).__name__}"
    if node.op == "call_method":
        return f"tensor method {node.target}()"
    return f"function {getattr(node.target, '__name__', node.target)}()"


def _own_refusal(layer: nn.Module) -> str | None:
    """Why a layer with a rule of the user's cannot be cut, if it cannot."""
    if hasattr(layer, "parametrizations"):
        return "its tensors are computed from others (a parametrization)"
    if "forward" in vars(layer):
        return "its forward was replaced on the layer itself"
    if any(_tensors(child) for child in layer.children()):
        return "layers inside it have tensors, which its cut does not reach"
    return None


def _names(node: fx.Node) -> list[str]:
    """Names of what a node reads."""
    return [source.name for source in node.all_input_nodes]


def _count(targets: Iterable[Any]) -> Counter[str]:
    return Counter(str(target) for target in targets)


def _attribute(module: nn.Module, node: fx.Node) -> Any:
    owner, _, leaf = str(node.target).rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def _shared_tensors(module: fx.GraphModule) -> set[int]:
    """Parameters and buffers with more than one name, and those of layers that are also read past their layer."""
    names = Counter(id(tensor) for tensor in _tensors(module, remove_duplicate=False))
    shared = {key for key, count in names.items() if count > 1}
    called = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    owned = {id(tensor) for target in called for tensor in _tensors(module.get_submodule(target))}
    read = {id(_attribute(module, node)) for node in module.graph.nodes if node.op == "get_attr"}
    return shared | (owned & read)


def _tensors(module: nn.Module, *, remove_duplicate: bool = True) -> list[Tensor]:
    named = [
        *module.named_parameters(remove_duplicate=remove_duplicate),
        *module.named_buffers(remove_duplicate=remove_duplicate),
    ]
    return [tensor for _, tensor in named]
