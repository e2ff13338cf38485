"""Trace a network that nobody wrote for us into a graph of layers.

The tracer is torch.fx's, with one addition: every value's concrete result on the example inputs is known while
tracing, so control flow on shapes (``if x.shape[2] < 8``, ``for i in range(len(xs))``) is followed instead of refused.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument, map_arg

from pgnas.errors import ModelError
from pgnas.nn.functionalize import functionalize


@dataclass(frozen=True)
class Trace:
    """A traced network.

    Attributes:
        module: The graph module; it owns the layers. Each node's ``meta`` has ``shape`` (the tuple of its tensor value
            on the example inputs, or None) .
        inputs: The example inputs, for later measurements.
        notes: What a user should know about how the network was traced.
    """

    module: fx.GraphModule
    inputs: tuple[Tensor, ...]
    notes: tuple[str, ...]


def trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> Trace:
    """Trace ``model`` (in eval mode) on example inputs.

    Args:
        model: The network. It is used as it is: hand in a copy if its mode and buffers matter.
        inputs: Example inputs, batch first.

    Raises:
        ModelError: The network fails on the inputs or has control flow that depends on values.
    """
    name = type(model).__name__
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected = model(*inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ModelError(
            f"model {name}",
            f"must run on inputs of shape {shapes}",
            value=_first_line(error),
            remedy="check the image size, the number of input channels and the model's parameters",
        ) from error
    tracer = ConcreteTracer(inputs)
    try:
        with torch.no_grad():
            graph = tracer.trace(model, concrete_args=_defaults_beyond(model, len(inputs)))
    except Exception as error:
        raise ModelError(
            f"model {name}",
            "must be traceable by torch.fx (no control flow that depends on tensor values)",
            value=_first_line(error),
            remedy="wrap the untraceable part in a torch.nn.Module of its own and name it in leaf_modules, "
            "or remove the control flow",
        ) from error
    finally:
        model.train(mode)
    for node in graph.nodes:
        value = tracer.values.get(node.name)
        node.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        node.meta["is_static"] = not _holds_tensor(value)
    module = fx.GraphModule(model, graph, class_name=name)
    notes = _functional_dropout_to_modules(module)
    functionalize(module)
    _batch_size_from_input(module.graph, tracer)
    _drop_unused(module.graph)
    module.recompile()
    _require_same(name, module, inputs, expected)
    return Trace(module, inputs, tuple(notes))


def _require_same(name: str, module: fx.GraphModule, inputs: tuple[Tensor, ...], expected: Any) -> None:
    """The traced network must compute what the network computes."""
    module.eval()
    with torch.no_grad():
        found = module(*inputs)
    pairs = zip(_tensors(found), _tensors(expected), strict=True)
    if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True) for a, b in pairs):
        raise ModelError(
            f"model {name}",
            "must compute the same when traced",
            value="another output",
            remedy="look for random or in-place operations outside torch.nn layers in its forward",
        )


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in _tensors(item)] if isinstance(value, tuple | list) else []


class ConcreteProxy(fx.Proxy):
    """A proxy that knows its concrete value, so that Python may ask for its length, truth or integer value."""

    def __getattr__(self, name: str) -> Any:
        value = self.tracer.values.get(self.node.name)
        if isinstance(value, Tensor) and name == "ndim":
            return value.ndim
        if isinstance(value, Tensor) and name in ("shape", "device", "dtype"):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return fx.proxy.Attribute(self, name)

    def __len__(self) -> int:
        return len(self.tracer.values[self.node.name])

    def __index__(self) -> int:
        return int(self.tracer.concrete(self).__index__())

    def __int__(self) -> int:
        return int(self.tracer.concrete(self))

    def __float__(self) -> float:
        return float(self.tracer.concrete(self))

    def dim(self) -> int:
        """The number of dimensions, which tracing may rely on."""
        return int(self.tracer.values[self.node.name].dim())


class ConcreteTracer(fx.Tracer):
    """torch.fx's tracer, computing every value on the example inputs as it goes."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__(autowrap_modules=(__import__("math"),))
        self.values: dict[str, Any] = {}
        self._inputs = list(inputs)
        self._computing = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """torch.nn's layers, and parameter-free layers whose behaviour depends on the training mode."""
        return super().is_leaf_module(m, module_qualified_name) or _depends_on_mode(m)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that knows its value."""
        return ConcreteProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        """Record an operation and compute it."""
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        node = proxy.node
        self._computing = True
        try:
            self.values[node.name] = self._compute(node)
        finally:
            self._computing = False
        return proxy

    # torch.fx patches layers' attribute access and calls while it traces; not while values are computed.
    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A layer's attribute, as a proxy if it is a parameter."""
        return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a layer, or record its call."""
        return forward(*args, **kwargs) if self._computing else super().call_module(m, forward, args, kwargs)

    def _compute(self, node: fx.Node) -> Any:
        def value_of(read: fx.Node) -> Any:
            if read.op == "get_attr" and read.name not in self.values:  # made by create_arg, past create_proxy
                self.values[read.name] = _attribute(self.root, str(read.target))
            return self.values[read.name]

        def concrete(argument: Argument) -> Any:
            return map_arg(argument, value_of)

        if node.op == "placeholder":
            return self._inputs.pop(0) if self._inputs else (node.args[0] if node.args else None)
        if node.op == "output":
            return None
        if node.op == "get_attr":
            return _attribute(self.root, str(node.target))
        args, kwargs = concrete(node.args), concrete(node.kwargs)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def concrete(self, obj: fx.Proxy) -> Any:
        """The value behind a proxy, if it is a Python value and not a tensor.

        Raises:
            fx.proxy.TraceError: It is a tensor: control flow would depend on it.
        """
        value = self.values[obj.node.name]
        if isinstance(value, Tensor):
            raise fx.proxy.TraceError(f"control flow depends on the value of tensor '{obj.node.name}'")
        return value

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The truth of a Python value."""
        return bool(self.concrete(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Iterate over a sequence of known length."""
        return iter([obj[i] for i in range(len(self.values[obj.node.name]))])


def _depends_on_mode(module: nn.Module) -> bool:
    if any(True for _ in module.parameters()) or any(True for _ in module.children()):
        return False
    try:
        return "self.training" in textwrap.dedent(inspect.getsource(type(module).forward))
    except (OSError, TypeError):
        return False


def _defaults_beyond(model: nn.Module, count: int) -> dict[str, Any] | None:
    """Arguments of ``forward`` past the inputs, fixed to their defaults."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    beyond = {
        p.name: p.default
        for p in parameters[count:]
        if p.default is not inspect.Parameter.empty and p.kind is not inspect.Parameter.VAR_KEYWORD
    }
    return beyond or None


def _functional_dropout_to_modules(module: fx.GraphModule) -> list[str]:
    """``F.dropout(x, p, training=self.training)`` was traced with training off; make it follow the mode again."""
    kinds: dict[Any, type[nn.Module]] = {
        nn.functional.dropout: nn.Dropout,
        nn.functional.dropout1d: nn.Dropout1d,
        nn.functional.dropout2d: nn.Dropout2d,
        nn.functional.dropout3d: nn.Dropout3d,
    }
    notes = []
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target not in kinds:
            continue
        p = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        if not isinstance(p, float | int):
            continue
        name = f"functional_{node.name}"
        module.add_submodule(name, kinds[node.target](p=float(p)))
        with module.graph.inserting_after(node):
            layer = module.graph.call_module(name, (node.args[0] if node.args else node.kwargs["input"],))
        layer.meta.update(node.meta)
        node.replace_all_uses_with(layer)
        module.graph.erase_node(node)
        notes.append(f"functional dropout '{node.name}' became the layer '{name}'")
    return notes


def _batch_size_from_input(graph: fx.Graph, tracer: ConcreteTracer) -> None:
    """Read the batch size from the first input wherever it is read, so that no inner value is kept for its shape."""
    placeholder = next(node for node in graph.nodes if node.op == "placeholder")
    batch = placeholder.meta["shape"][0] if placeholder.meta["shape"] else None
    for node in list(graph.nodes):
        reads_size = node.op == "call_method" and node.target == "size" and node.args[1:] == (0,)
        is_item = node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"
        reads_item = is_item and node.args[1] == 0 and _is_shape(node.args[0])
        if not (reads_size or reads_item) or tracer.values.get(node.name) != batch:
            continue
        if reads_size and node.args[0] is placeholder:
            continue
        first = next(n for n in graph.nodes if n.op != "placeholder")
        with graph.inserting_before(first):
            size = graph.call_method("size", (placeholder, 0))
        size.meta.update(node.meta)
        node.replace_all_uses_with(size)
        graph.erase_node(node)


def _is_shape(node: Any) -> bool:
    if not isinstance(node, fx.Node):
        return False
    by_attribute = node.op == "call_function" and node.target is getattr and node.args[1] == "shape"
    return by_attribute or (node.op == "call_method" and node.target == "size" and len(node.args) == 1)


def _drop_unused(graph: fx.Graph) -> None:
    """Remove what nothing reads, the checks on fixed arguments and their inputs included."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch._assert:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        if not node.users and node.meta["shape"] is None:
            graph.erase_node(node)


def _attribute(root: nn.Module, target: str) -> Any:
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, dict):
        return any(_holds_tensor(item) for item in value.values())
    return isinstance(value, tuple | list) and any(_holds_tensor(item) for item in value)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
