"""Rules that users register for layers, functions and tensor methods of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, fx, nn

from pgnas.errors import RuleError
from pgnas.nn.channels.graph import ChannelGraph, describe
from pgnas.nn.channels.ops import _RULES, ChannelOp, Follow, Rule, Value, first_input, rule
from pgnas.nn.channels.rules_layers import NOT_FOLLOWED, Dense
from pgnas.nn.cut import is_cut_known
from pgnas.nn.own_layers import OWN_FUNCTIONS, OWN_LAYERS, CutFunction, OwnLayer, own_layer

_RESULT = "return graph.follow(node), mix(node, graph), another ChannelOp, or in words why it cannot be followed"


def channel_rule(
    *targets: type[nn.Module] | Callable[..., Any] | str,
    axis: int | None = None,
    cut: CutFunction | None = None,
    cut_axes: Mapping[str, int] | None = None,
    attributes: str | Sequence[str] = (),
) -> Callable[[Rule], Rule]:
    """Register how an operation of yours treats channels, so that pgnas shrinks what surrounds it, and itself.

    The decorated rule is called with the operation's node and the graph analysed so far. It returns
    ``graph.follow(node)`` where output channel c depends on input channel c alone; ``mix(node, graph)`` (of
    ``pgnas.nn.channels``) where every output channel depends on every input channel; any other
    :class:`~pgnas.nn.channels.ChannelOp`; or a sentence, why this one cannot be followed::

        @pgnas.channel_rule(Scale)
        def scale(node, graph):
            return graph.follow(node)

    ``pgnas.testing.check_layer(layer, example)`` checks the rule and the cut.

    Args:
        targets: Layer types, functions, or names of tensor methods.
        axis: The axis of the input where the channels must lie, negative from the end; ``None``: any, and 1 for a
            layer with parameters or buffers of its own.
        cut: For layers: called with the layer and the indices of the kept input and output channels; returns a
            ``pgnas.nn.Cut``. ``None``: a convolution or linear layer is cut as such; of other tensors those whose first
            axis is as long as there are output channels.
        cut_axes: For layers: parameter or buffer name to the axis of the output channels; only these are cut then.
        attributes: For layers: attributes that hold the number of output channels (``"num_features"``).

    Raises:
        RuleError: A target is of another kind or has a rule already; options that do not fit it.
    """
    if not targets:
        raise RuleError("channel_rule", "must be given what the rule is for", remedy="write @channel_rule(MyLayer)")
    names = (attributes,) if isinstance(attributes, str) else tuple(attributes)
    if cut is not None and (cut_axes is not None or names):
        raise RuleError("channel_rule", "takes cut or cut_axes and attributes", remedy="let cut return a Cut with both")
    for target in targets:
        _require_target(target)
        if (cut is not None or cut_axes is not None or names) and not _is_layer_type(target):
            raise RuleError(_name(target), "has nothing that could be cut", remedy="pass cut options for layers only")

    def register(function: Rule) -> Rule:
        _require_rule(function)
        for target in targets:
            if _is_layer_type(target):
                kind = cast(type[nn.Module], target)
                OWN_LAYERS[kind] = OwnLayer(kind, axis, cut, cut_axes, names)
            elif callable(target):
                OWN_FUNCTIONS.append(target)
            rule(target)(_checked(function, axis))
        return function

    return register


def mix(node: fx.Node, graph: ChannelGraph, *, groups: int = 1) -> ChannelOp | str:
    """The rule of a layer that mixes channels as a convolution or linear layer does, keeping their axis.

    Within a group every output channel reads every input channel, and the layer must be affine: a channel that is zero
    adds nothing, and the contributions of channels add up. It is gated if its type is a subclass of a convolution or
    linear layer; other types need ``channel_rule(..., cut=...)``.

    Args:
        node: The layer's node.
        graph: The graph.
        groups: How many groups of channels do not see each other.
    """
    source, shape = first_input(node), graph.shape(node)
    value = graph.value(source) if source is not None else None
    if source is None or value is None or value.axis is None or shape is None or value.axis >= len(shape):
        return NOT_FOLLOWED
    if node.op != "call_module":
        return "only a layer can mix channels and be cut"
    made = Value(value.axis, shape[value.axis])
    return Dense(node.name, (source.name,), (value,), made, module=str(node.target), groups=groups)


@contextmanager
def temporary_rules() -> Iterator[None]:
    """Rules registered while this lasts are forgotten at its end; for tests."""
    rules, layers, functions = dict(_RULES), dict(OWN_LAYERS), list(OWN_FUNCTIONS)
    try:
        yield
    finally:
        for registry, before in ((_RULES, rules), (OWN_LAYERS, layers)):
            registry.clear()
            registry.update(before)  # type: ignore[arg-type]
        OWN_FUNCTIONS[:] = functions


def _checked(function: Rule, axis: int | None) -> Rule:
    """The user's rule, asked only where the channels lie on its axis; what it returns is checked and completed."""

    def ask(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
        layer = graph.layer(node)
        own = own_layer(layer) if layer is not None else None
        if layer is not None and own is None:
            return f"the forward of {type(layer).__name__} is not that of the layer with a registered rule"
        has_tensors = layer is not None and bool([*layer.parameters(), *layer.buffers()])
        wanted = 1 if axis is None and has_tensors else axis
        source = first_input(node)
        if wanted is not None and source is not None and not _lies_on(graph, source, wanted):
            return f"the channels of its input do not lie on axis {wanted}"
        subject = f"channel rule of {describe(node, layer)}"
        try:
            found = function(node, graph)
        except Exception as error:
            value = f"{type(error).__name__}: {error}"
            raise RuleError(subject, "must return how channels are treated", value=value, remedy=_RESULT) from error
        if not isinstance(found, ChannelOp | str):
            raise RuleError(subject, "must return how channels are treated", value=type(found).__name__, remedy=_RESULT)
        if isinstance(found, Dense) and own is not None and not is_cut_known(own):
            return "it mixes channels, and its rule does not say how it is cut (cut=)"
        if has_tensors and isinstance(found, Follow) and found.module is None:
            return replace(found, module=str(node.target))
        return found

    return ask


def _lies_on(graph: ChannelGraph, source: fx.Node, axis: int) -> bool:
    shape, found = graph.shape(source), graph.value(source).axis
    return shape is not None and found is not None and found == (axis if axis >= 0 else len(shape) + axis)


def _require_target(target: object) -> None:
    is_method = isinstance(target, str) and callable(getattr(Tensor, target, None))
    is_function = callable(target) and not isinstance(target, type | nn.Module)
    if not (is_method or is_function or _is_layer_type(target)):
        remedy = "pass the class, not a layer" if isinstance(target, nn.Module) else "check what is passed"
        raise RuleError(
            "channel_rule",
            "must be given layer types, functions or names of tensor methods",
            value=f"{_name(target)} ({type(target).__name__})",
            remedy=remedy,
        )
    if target in _RULES:
        raise RuleError(
            _name(target), "has a channel rule already", remedy="register a subclass, or a rule for each type once"
        )


def _require_rule(function: object) -> None:
    try:
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"a {type(function).__name__}")
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError) as error:
        raise RuleError(
            "channel_rule",
            "must decorate a function of a node and a graph",
            value=str(error),
            remedy="write @channel_rule(MyLayer) above def my_layer(node, graph)",
        ) from error


def _is_layer_type(target: object) -> bool:
    return isinstance(target, type) and issubclass(target, nn.Module)


def _name(target: object) -> str:
    name = getattr(target, "__name__", None)
    return str(name) if name is not None else (target if isinstance(target, str) else type(target).__name__)
