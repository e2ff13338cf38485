"""Layers of torch.nn as a class name and the arguments of its constructor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from pgnas.description.errors import DescriptionError
from pgnas.description.operations import words
from pgnas.description.values import decode, encode
from pgnas.errors import first_line

_NAMES = words("""
    AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d
    AlphaDropout AvgPool1d AvgPool2d AvgPool3d BatchNorm1d BatchNorm2d BatchNorm3d Bilinear CELU ChannelShuffle
    CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d Conv1d Conv2d Conv3d
    ConvTranspose1d ConvTranspose2d ConvTranspose3d CosineSimilarity Dropout Dropout1d Dropout2d Dropout3d ELU
    Embedding FeatureAlphaDropout Flatten Fold GELU GLU GroupNorm Hardshrink Hardsigmoid Hardswish Hardtanh
    Identity InstanceNorm1d InstanceNorm2d InstanceNorm3d LPPool1d LPPool2d LPPool3d LayerNorm LeakyReLU Linear
    LocalResponseNorm LogSigmoid LogSoftmax MaxPool1d MaxPool2d MaxPool3d Mish MultiheadAttention PReLU
    PairwiseDistance PixelShuffle PixelUnshuffle RMSNorm RReLU ReLU ReLU6 ReflectionPad1d ReflectionPad2d
    ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d SELU SiLU Sigmoid Softmax Softmax2d Softmin
    Softplus Softshrink Softsign Tanh Tanhshrink Threshold Unflatten Unfold Upsample UpsamplingBilinear2d
    UpsamplingNearest2d ZeroPad1d ZeroPad2d ZeroPad3d
""")

LAYERS: Mapping[str, type[nn.Module]] = {name: getattr(nn, name) for name in _NAMES if hasattr(nn, name)}
"""The layers that a description may name: none of them runs anything that it is handed."""

_NOT_ARGUMENTS = ("device", "dtype")
_PLAIN = (bool, int, float, str, tuple, type(None))

Arguments = dict[str, Any]


def is_torch_layer(layer: nn.Module) -> bool:
    """Whether the layer's very class is a public one of torch.nn."""
    return getattr(nn, type(layer).__name__, None) is type(layer)


@torch.no_grad()
def passes_on(layer: nn.Module) -> bool:
    """Whether a layer without state returns its input in eval mode, as stochastic depth does."""
    if layer.state_dict() or layer.training:
        return False
    for scale in (2.0, 1e-4, 1e4, 1e8):  # what leaves usual numbers alone may clamp others, or round them
        probe = torch.linspace(-scale, scale, 96).reshape(2, 3, 4, 4)
        try:
            output = layer(probe.clone())  # a layer may change its input in place and return that
        except Exception:  # a foreign layer may refuse the probe in any way
            return False
        if not isinstance(output, Tensor) or not torch.equal(output, probe):
            return False
    return True


@singledispatch
def constructor_arguments(layer: nn.Module) -> Arguments:
    """The constructor's arguments by name; register a rule for types that do not keep them as attributes."""
    found: Arguments = {}
    for key, parameter in _parameters(type(layer)).items():
        if key in layer._parameters:
            found[key] = layer._parameters[key] is not None
        elif hasattr(layer, key):
            found[key] = getattr(layer, key)
        elif parameter.default is inspect.Parameter.empty:
            raise AttributeError(key)
    return found


@constructor_arguments.register
def _attention(layer: nn.MultiheadAttention) -> Arguments:
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


@constructor_arguments.register
def _recurrent(layer: nn.RNNBase) -> Arguments:
    return {key: getattr(layer, key) for key in _parameters(type(layer))}


def shortened(given: Arguments) -> Arguments:
    """``kernel_size=(3, 3)`` as 3; whether the layer means the same by it is for :func:`constructs` to say."""

    def short(value: Any) -> Any:
        return value[0] if isinstance(value, tuple) and len(value) > 1 and len(set(value)) == 1 else value

    return {key: short(value) for key, value in given.items()}


def split_arguments(kind: type[nn.Module], given: Arguments) -> tuple[Arguments, Arguments]:
    """The arguments without a default, and those that differ from theirs."""
    parameters = _parameters(kind)
    required = {key: given[key] for key in given if parameters[key].default is inspect.Parameter.empty}
    optional = {key: value for key, value in given.items() if key not in required and value != parameters[key].default}
    return required, optional


def constructs(layer: nn.Module, given: Arguments) -> bool:
    """Whether the arguments make a layer like this one, weights aside."""
    required, optional = split_arguments(type(layer), given)
    try:
        with torch.device("meta"):  # shapes only: no memory, no random numbers
            made = type(layer)(*required.values(), **optional)
    except Exception:  # each constructor refuses in its own way
        return False
    return _likeness(made) == _likeness(layer)


def describe_layer(layer: nn.Module, name: str) -> dict[str, Any]:
    """The class and the arguments of a layer, as JSON; one that only passes its input on becomes an Identity.

    Raises:
        DescriptionError: The layer is not of the list, or is not as its constructor makes it.
    """
    kind = type(layer)
    part = f"layer '{name}' ({kind.__name__})"
    if LAYERS.get(kind.__name__) is not kind:
        if passes_on(layer):
            return {"type": "Identity", "arguments": {}}
        raise DescriptionError(part, "must be a layer of torch.nn that pgnas knows")
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise DescriptionError(part, "must have no hooks")
    try:
        given = constructor_arguments(layer)
    except AttributeError as error:
        raise DescriptionError(part, "must be constructible from its attributes", str(error)) from error
    if not constructs(layer, given):
        raise DescriptionError(part, "must be as its constructor makes it", "changed attributes")
    required, optional = split_arguments(kind, given)
    return {"type": kind.__name__, "arguments": {k: encode(v, part) for k, v in (required | optional).items()}}


def build_layer(value: Any, name: str) -> nn.Module:
    """The layer that a file describes, without memory for its tensors (on the meta device).

    Raises:
        DescriptionError: It is no layer of the list, or its constructor refuses the arguments.
    """
    part = f"layer {name!r}"
    if not isinstance(value, dict) or set(value) != {"type", "arguments"}:
        raise DescriptionError(part, "must have a type and arguments")
    kind, given = value["type"], value["arguments"]
    if not isinstance(kind, str) or kind not in LAYERS:
        raise DescriptionError(part, "must be of a class of torch.nn that pgnas knows", kind)
    known = _parameters(LAYERS[kind])
    if not isinstance(given, dict) or not set(given) <= set(known):
        raise DescriptionError(part, f"must have arguments of nn.{kind}")
    arguments = {key: decode(item, part, {}) for key, item in given.items()}
    try:
        with torch.device("meta"):
            return LAYERS[kind](**arguments)
    except Exception as error:  # each constructor refuses in its own way
        raise DescriptionError(part, f"must have arguments that nn.{kind} takes", first_line(error)) from error


def _parameters(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Those of the constructor, without the ones that say where the tensors lie and private ones."""
    if issubclass(kind, nn.RNNBase):
        return _recurrent_parameters(kind)
    return {
        key: parameter
        for key, parameter in inspect.signature(kind).parameters.items()
        if key not in _NOT_ARGUMENTS
        and not key.startswith("_")
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def _recurrent_parameters(kind: type[nn.RNNBase]) -> dict[str, inspect.Parameter]:
    """Those of the base class but for the mode, which is the class: the constructors name none of them."""
    found = dict(inspect.signature(nn.RNNBase).parameters)
    if issubclass(kind, nn.RNN):
        found["nonlinearity"] = inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh")
    left_out = {"mode", *_NOT_ARGUMENTS, *(() if issubclass(kind, nn.LSTM) else ("proj_size",))}
    return {key: parameter for key, parameter in found.items() if key not in left_out}


def _likeness(layer: nn.Module) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """All that tells layers of one type apart: plain public attributes, and shapes of the state."""
    plain = {
        key: value
        for key, value in vars(layer).items()
        if not key.startswith("_") and key != "training" and isinstance(value, _PLAIN)
    }
    return plain, {key: tuple(value.shape) for key, value in layer.state_dict().items()}
