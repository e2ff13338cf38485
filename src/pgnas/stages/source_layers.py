"""A layer of torch.nn as the source of the call that constructs it."""

from __future__ import annotations

import inspect
import math
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from pgnas.errors import ModelError

_REMEDY = "use the .pt2 or .onnx file, or build the layer from layers of torch.nn"
_NOT_ARGUMENTS = ("device", "dtype")
_PLAIN = (bool, int, float, str, tuple, type(None))


def literal(value: object) -> str:
    """A plain value as Python source.

    Raises:
        TypeError: It is not plain.
    """
    match value:
        case str():
            text = repr(value)
            return text if '"' in text or "\\" in text else f'"{value}"'
        case None | bool():
            return repr(value)
        case int():
            return repr(int(value))
        case float():
            return repr(float(value)) if math.isfinite(value) else f"float('{value}')"
        case tuple():
            return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
        case list():
            return f"[{', '.join(map(literal, value))}]"
        case dict():
            return "{" + ", ".join(f"{literal(key)}: {literal(item)}" for key, item in value.items()) + "}"
        case torch.dtype() | torch.memory_format() | torch.layout():
            return str(value)
        case torch.device():
            return f"torch.device({str(value)!r})"
        case _ if value is ...:
            return "..."
    raise TypeError(f"no source for a {type(value).__name__}")


def is_writable(layer: nn.Module) -> bool:
    """Whether the layer's type has a place in source; if not, it must be opened into its operations."""
    return _is_torch(layer) or _passes_on(layer)


def layer_source(layer: nn.Module, name: str) -> str:
    """The call that constructs ``layer``, as in ``nn.Conv2d(3, 8, kernel_size=3, bias=False)``.

    A foreign layer that only passes its input on in eval mode (stochastic depth) becomes ``nn.Identity()``.

    Args:
        layer: The layer.
        name: Its name in the network, for the error.

    Raises:
        ModelError: The layer is not one of torch.nn, or its arguments cannot be told from its attributes.
    """
    kind = type(layer)
    subject = f"layer '{name}' ({kind.__name__})"
    if not _is_torch(layer):
        if _passes_on(layer):
            return "nn.Identity()"
        raise ModelError(subject, "must be a layer of torch.nn to be written as source", remedy=_REMEDY)
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise ModelError(subject, "must have no hooks to be written as source", remedy=_REMEDY)
    given = _given(layer)
    if given is None:
        raise ModelError(subject, "must be constructible from its attributes", remedy=_REMEDY)
    for arguments in (_shortened(given), given):
        required, optional = _split(kind, arguments)
        if _constructs(layer, arguments):
            words = [literal(value) for value in required.values()]
            words += [f"{key}={literal(value)}" for key, value in optional.items()]
            return f"nn.{kind.__name__}({', '.join(words)})"
    raise ModelError(subject, "must be as its constructor makes it", value="changed attributes", remedy=_REMEDY)


@singledispatch
def constructor_arguments(layer: nn.Module) -> dict[str, Any]:
    """The constructor's arguments by name; register a rule for types that do not keep them as attributes."""
    found: dict[str, Any] = {}
    for key, parameter in inspect.signature(type(layer)).parameters.items():
        if key in _NOT_ARGUMENTS or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if key in layer._parameters:
            found[key] = layer._parameters[key] is not None
        elif hasattr(layer, key):
            found[key] = getattr(layer, key)
        elif parameter.default is inspect.Parameter.empty:
            raise AttributeError(key)
    return found


@constructor_arguments.register
def _attention(layer: nn.MultiheadAttention) -> dict[str, Any]:
    return {
        "embed_dim": layer.embed_dim,
        "num_heads": layer.num_heads,
        "dropout": layer.dropout,
        "bias": layer.in_proj_bias is not None,
        "add_bias_kv": layer.bias_k is not None,
        "add_zero_attn": layer.add_zero_attn,
        "kdim": layer.kdim if layer.kdim != layer.embed_dim else None,
        "vdim": layer.vdim if layer.vdim != layer.embed_dim else None,
        "batch_first": layer.batch_first,
    }


def _given(layer: nn.Module) -> dict[str, Any] | None:
    """The arguments, if they can be told and written."""
    try:
        given = constructor_arguments(layer)
        literal(given)
    except (AttributeError, TypeError):
        return None
    return given


def _split(kind: type[nn.Module], given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments without a default, and those that differ from theirs."""
    parameters = inspect.signature(kind).parameters
    required = {key: given[key] for key in given if parameters[key].default is inspect.Parameter.empty}
    optional = {key: value for key, value in given.items() if key not in required and value != parameters[key].default}
    return required, optional


def _shortened(given: dict[str, Any]) -> dict[str, Any]:
    """``kernel_size=(3, 3)`` as 3; whether the layer means the same by it is for :func:`_constructs` to say."""

    def short(value: Any) -> Any:
        return value[0] if isinstance(value, tuple) and len(value) > 1 and len(set(value)) == 1 else value

    return {key: short(value) for key, value in given.items()}


def _constructs(layer: nn.Module, given: dict[str, Any]) -> bool:
    """Whether the arguments make a layer like this one, weights aside."""
    required, optional = _split(type(layer), given)
    try:
        with torch.device("meta"):  # shapes only: no memory, no random numbers
            made = type(layer)(*required.values(), **optional)
    except Exception:  # each constructor refuses in its own way
        return False
    return _likeness(made) == _likeness(layer)


def _likeness(layer: nn.Module) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """All that tells layers of one type apart: plain public attributes, and shapes of the state."""
    plain = {
        key: value
        for key, value in vars(layer).items()
        if not key.startswith("_") and key != "training" and isinstance(value, _PLAIN)
    }
    return plain, {key: tuple(value.shape) for key, value in layer.state_dict().items()}


def _is_torch(layer: nn.Module) -> bool:
    return getattr(nn, type(layer).__name__, None) is type(layer)


@torch.no_grad()
def _passes_on(layer: nn.Module) -> bool:
    """Whether a layer without state returns its input in eval mode; the export compares outputs in any case."""
    if layer.state_dict() or layer.training:
        return False
    probe = torch.linspace(-2, 2, 96).reshape(2, 3, 4, 4)
    try:
        output = layer(probe)
    except Exception:  # a foreign layer may refuse the probe in any way
        return False
    return isinstance(output, Tensor) and torch.equal(output, probe)
