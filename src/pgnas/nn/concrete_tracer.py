"""torch.fx's tracer, with every value's concrete result on the example inputs known while it traces.

Control flow on shapes (``if x.shape[2] < 8``, ``for i in range(len(xs))``) is followed instead of refused.
"""

from __future__ import annotations

import ast
import functools
import math
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument, map_aggregate, map_arg
from torch.nn.modules import transformer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from pgnas.nn.choice import OutputGate
from pgnas.nn.functional_layers import applies_own_weight
from pgnas.nn.own_layers import OWN_FUNCTIONS, own_layer
from pgnas.nn.sources import source_of

_FACTORIES = (
    torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn, torch.eye, torch.randperm, torch.tensor,
    torch.as_tensor, torch.is_tensor, torch.arange, torch.full, torch.linspace,
)  # fmt: skip
"""Functions that would take a proxy for something else: for all sizes at once, or for no tensor."""
_SIZED_METHODS = ("expand", "new_zeros", "new_ones", "new_empty")
"""Methods that would do so, called on a constant of the model."""


DROPOUTS: dict[Callable[..., Any], type[nn.Module]] = {
    nn.functional.dropout: nn.Dropout,
    nn.functional.dropout1d: nn.Dropout1d,
    nn.functional.dropout2d: nn.Dropout2d,
    nn.functional.dropout3d: nn.Dropout3d,
    nn.functional.alpha_dropout: nn.AlphaDropout,
    nn.functional.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
"""Functions that are made to follow the mode again, as layers."""
_COMPOSITES = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
"""Of torch.nn, but made of layers that can be followed; in evaluation they only have a faster way to the same."""


class ConcreteProxy(fx.Proxy):
    """A proxy that knows its concrete value, so that Python may ask for its length, truth or integer value."""

    tracer: ConcreteTracer

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
    """torch.fx's tracer, computing every value on the example inputs as it goes.

    Args:
        inputs: The example inputs.
        opens_composites: Whether torch.nn's transformers are looked into.

    Attributes:
        values: Node name to its value on the example inputs.
        hooked: Names of the nodes whose layer has hooks that may change what it computes.
    """

    def __init__(self, inputs: tuple[Tensor, ...], *, opens_composites: bool = True) -> None:
        super().__init__(autowrap_modules=(math,), autowrap_functions=(*OWN_FUNCTIONS, *_FACTORIES))
        # torch.fx wraps functions where it meets them in the globals of a forward; a user may also call module.function
        homes = (sys.modules.get(function.__module__) for function in OWN_FUNCTIONS)
        self._autowrap_search += [torch, *(home for home in homes if home is not None)]
        self.values: dict[str, Any] = {}
        self.hooked: set[str] = set()
        self._inputs = list(inputs)
        self._computing = False
        self._opened: set[nn.Module] = set()
        self._opens_composites = opens_composites

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of ``root``."""
        with _sized_methods_recorded(), _causality_not_looked_for():
            graph = super().trace(root, concrete_args)
        for node in graph.nodes:
            if node.target in _FACTORIES:
                node.meta.pop("is_wrapped", None)  # generated code would wrap "torch.zeros", a name no module has
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers with a rule, and those whose behaviour in training would be lost by looking inside."""
        if m in self._opened or (self._opens_composites and is_composite(m) and own_layer(m) is None):
            return False
        known = super().is_leaf_module(m, module_qualified_name) or own_layer(m) is not None
        known = known or isinstance(m, OutputGate)
        return known or isinstance(m, _ConvNd | nn.Linear | _BatchNorm) or has_torch_forward(m) or adds_noise(m)

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
        if self._computing:
            return forward(*args, **kwargs)
        if isinstance(m, _ConvNd | nn.Linear) and not (has_torch_forward(m) or own_layer(m) or reads_mode(m)):
            self._open_if_plain(m, args, kwargs)
        return super().call_module(m, forward, args, kwargs)

    def _open_if_plain(self, m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A layer that only pads its input first is looked into: what is behind it is an ordinary one."""

        def value(argument: Any) -> Any:
            return self.values[argument.node.name] if isinstance(argument, fx.Proxy) else argument

        self._computing = True
        try:
            if applies_own_weight(m, map_aggregate(args, value), map_aggregate(kwargs, value)):
                self._opened.add(m)
        finally:
            self._computing = False

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
            layer = self.root.get_submodule(str(node.target))
            if hooks_change(layer, args, kwargs):
                self.hooked.add(node.name)
            return layer(*args, **kwargs)
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
        return iter([obj[i] for i in range(len(self.values[obj.node.name]))])  # type: ignore[index]


@contextmanager
def _sized_methods_recorded() -> Iterator[None]:
    """While this lasts, such methods of a tensor that is no proxy are recorded if a size is one."""

    def recording(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            found: list[fx.Proxy] = []
            map_aggregate((args, kwargs), lambda a: found.append(a) if isinstance(a, fx.Proxy) else None)
            if not found:
                return method(tensor, *args, **kwargs)
            return found[0].tracer.create_proxy("call_method", name, (tensor, *args), kwargs)

        return call

    own = {name: vars(Tensor)[name] for name in _SIZED_METHODS if name in vars(Tensor)}  # the others are inherited
    for name in _SIZED_METHODS:
        setattr(Tensor, name, recording(name, getattr(Tensor, name)))
    try:
        yield
    finally:
        for name in _SIZED_METHODS:
            if name in own:
                setattr(Tensor, name, own[name])
            else:
                delattr(Tensor, name)


@contextmanager
def _causality_not_looked_for() -> Iterator[None]:
    """While this lasts, torch.nn's transformers do not look at a mask's values: what they find is a hint."""
    module: Any = transformer
    looked = getattr(module, "_detect_is_causal_mask", None)
    if looked is not None:
        module._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True
    try:
        yield
    finally:
        if looked is not None:
            module._detect_is_causal_mask = looked


def reads_mode(module: nn.Module) -> bool:
    """Whether the forward of a module reads ``self.training`` for more than a functional dropout."""
    if is_composite(module):
        return False
    try:
        tree = ast.parse(textwrap.dedent(source_of(type(module).forward)))
    except SyntaxError:
        return False
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {function.__name__ for function in DROPOUTS}
    dropouts = [call for call in calls if ast.unparse(call.func).rpartition(".")[2] in names]
    given = [value for call in dropouts for value in (*call.args, *(named.value for named in call.keywords))]
    read = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "training"]
    return any(ast.unparse(node) == "self.training" and not any(node is value for value in given) for node in read)


def stops_gradients(module: nn.Module) -> bool:
    """Whether the forward of a module turns gradients off for a part of it."""
    source = source_of(type(module).forward)
    return any(name in source for name in ("no_grad(", "inference_mode(", "set_grad_enabled("))


def hooks_change(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether hooks of a layer have a part in what it computes; those that run before it are taken to have one."""
    if layer._forward_pre_hooks or not layer._forward_hooks:
        return bool(layer._forward_pre_hooks)

    def clone(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) else value

    made = [call(*map_aggregate(args, clone), **map_aggregate(kwargs, clone)) for call in (layer, layer.forward)]
    alike = all(isinstance(value, Tensor) for value in made) and made[0].shape == made[1].shape
    return not (alike and torch.equal(made[0].nan_to_num(), made[1].nan_to_num()))


def is_composite(module: nn.Module) -> bool:
    """Whether a module is made of layers that can be followed, and computes what its torch.nn class does."""
    return any(type(module).forward is kind.forward for kind in _COMPOSITES)


def has_torch_forward(module: nn.Module) -> bool:
    """Whether a layer, which may be of a subclass, computes what its torch.nn class computes."""
    if any(True for _ in module.children()):
        return False
    methods = [getattr(type(module), name, None) for name in ("forward", "_conv_forward")]
    return all(method.__module__.startswith("torch.nn.") for method in methods if method is not None)


def adds_noise(module: nn.Module) -> bool:
    """A parameter-free layer with a forward of its own that does something else in training: stochastic depth, say."""
    if any(True for _ in module.parameters()) or any(True for _ in module.children()) or has_torch_forward(module):
        return False
    return "self.training" in source_of(type(module).forward)


def _attribute(root: nn.Module, target: str) -> Any:
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value
