"""A layer of torch.nn as the source of the call that constructs it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pgnas.description.layers import (
    constructor_arguments,
    constructs,
    is_torch_layer,
    passes_on,
    shortened,
    split_arguments,
)
from pgnas.errors import ModelError

_REMEDY = "use the .pt2 or .onnx file, or build the layer from layers of torch.nn"


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
    if not is_torch_layer(layer):
        if passes_on(layer):
            return "nn.Identity()"
        raise ModelError(subject, "must be a layer of torch.nn to be written as source", remedy=_REMEDY)
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise ModelError(subject, "must have no hooks to be written as source", remedy=_REMEDY)
    given = _given(layer)
    if given is None:
        raise ModelError(subject, "must be constructible from its attributes", remedy=_REMEDY)
    for arguments in (shortened(given), given):
        required, optional = split_arguments(kind, arguments)
        if constructs(layer, arguments):
            words = [literal(value) for value in required.values()]
            words += [f"{key}={literal(value)}" for key, value in optional.items()]
            return f"nn.{kind.__name__}({', '.join(words)})"
    raise ModelError(subject, "must be as its constructor makes it", value="changed attributes", remedy=_REMEDY)


def _given(layer: nn.Module) -> dict[str, Any] | None:
    """The arguments, if they can be told and written."""
    try:
        given = constructor_arguments(layer)
        literal(given)
    except (AttributeError, TypeError):
        return None
    return given
