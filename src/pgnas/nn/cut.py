"""Cut layers to some of their channels: one rule a layer type, used for weights and optimiser state alike."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pgnas.nn.copying import copied
from pgnas.nn.macs import Conv, ConvTranspose
from pgnas.nn.own_layers import OwnLayer, own_layer


@dataclass(frozen=True)
class Cut:
    """Which slices of a layer's tensors remain.

    Attributes:
        slices: Parameter or buffer name to {dimension: kept indices}.
        attributes: The layer's attributes that change with them (``in_channels`` and the like).
    """

    slices: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    def take(self, name: str, tensor: Tensor) -> Tensor:
        """The remaining slices of the tensor ``name``, or of one shaped like it (momentum), as a new tensor."""
        for dimension, index in self.slices.get(name, {}).items():
            tensor = tensor.index_select(dimension, index.to(tensor.device))
        return tensor.detach().clone(memory_format=torch.preserve_format)

    @torch.no_grad()
    def put_(self, name: str, tensor: Tensor, small: Tensor) -> None:
        """Write into ``tensor`` what :meth:`take` takes from it: the inverse, in place."""
        index: list[Tensor | slice] = [slice(None)] * tensor.ndim
        cut = self.slices.get(name, {})
        for place, (dimension, kept) in enumerate(cut.items()):
            shape = [1] * len(cut)
            shape[place] = len(kept)
            index[dimension] = kept.to(tensor.device).reshape(shape)
        tensor[tuple(index)] = small.to(tensor)


@singledispatch
def cut_rule(layer: nn.Module, kept_in: Tensor, kept_out: Tensor) -> Cut:
    """How to cut ``layer`` to input and output channel indices; register one for each layer type with parameters."""
    raise NotImplementedError(f"no cut rule for {type(layer).__name__}")


@cut_rule.register(nn.Conv1d)
@cut_rule.register(nn.Conv2d)
@cut_rule.register(nn.Conv3d)
def _convolution(layer: Conv, kept_in: Tensor, kept_out: Tensor) -> Cut:
    weight: dict[int, Tensor] = {0: kept_out}
    groups = layer.groups
    if groups == 1:
        weight[1] = kept_in
    else:  # groups go whole, so that each keeps its inputs; depthwise is the case of one channel a group
        groups = len(kept_in) * layer.groups // layer.in_channels
    return Cut(
        {"weight": weight, "bias": {0: kept_out}},
        {"in_channels": len(kept_in), "out_channels": len(kept_out), "groups": groups},
    )


@cut_rule.register(nn.ConvTranspose1d)
@cut_rule.register(nn.ConvTranspose2d)
@cut_rule.register(nn.ConvTranspose3d)
def _transposed(layer: ConvTranspose, kept_in: Tensor, kept_out: Tensor) -> Cut:
    weight = {0: kept_in}
    groups = layer.groups
    if groups == 1:
        weight[1] = kept_out
    else:
        groups = len(kept_in) * layer.groups // layer.in_channels
    return Cut(
        {"weight": weight, "bias": {0: kept_out}},
        {"in_channels": len(kept_in), "out_channels": len(kept_out), "groups": groups},
    )


@cut_rule.register(nn.Linear)
def _linear(layer: nn.Linear, kept_in: Tensor, kept_out: Tensor) -> Cut:
    return Cut(
        {"weight": {0: kept_out, 1: kept_in}, "bias": {0: kept_out}},
        {"in_features": len(kept_in), "out_features": len(kept_out)},
    )


@cut_rule.register(_NormBase)
def _batch_norm(layer: _NormBase, kept_in: Tensor, kept_out: Tensor) -> Cut:
    names = ("weight", "bias", "running_mean", "running_var")
    return Cut({name: {0: kept_out} for name in names}, {"num_features": len(kept_out)})


@cut_rule.register(nn.GroupNorm)
def _group_norm(layer: nn.GroupNorm, kept_in: Tensor, kept_out: Tensor) -> Cut:
    groups = len(kept_out) * layer.num_groups // layer.num_channels
    slices = {"weight": {0: kept_out}, "bias": {0: kept_out}}
    return Cut(slices, {"num_channels": len(kept_out), "num_groups": groups})


@cut_rule.register(nn.PReLU)
def _prelu(layer: nn.PReLU, kept_in: Tensor, kept_out: Tensor) -> Cut:
    return Cut({"weight": {0: kept_out}}, {"num_parameters": len(kept_out)})


def has_cut_rule(kind: type[nn.Module]) -> bool:
    """Whether layers of a type are cut by a rule made for torch.nn's types."""
    return cut_rule.dispatch(kind) is not cut_rule.dispatch(nn.Module)


def is_cut_known(own: OwnLayer) -> bool:
    """Whether the input channels of a user's layer can be cut, and not only its output channels."""
    return own.cut is not None or has_cut_rule(own.kind)


def cut_to(layer: nn.Module, kept_in: Tensor, kept_out: Tensor) -> Cut:
    """How to cut any layer to input and output channel masks, each bool (channels,)."""
    own = own_layer(layer)
    inputs, outputs = kept_in.nonzero()[:, 0], kept_out.nonzero()[:, 0]
    if own is None:
        return cut_rule(layer, inputs, outputs)
    return own.cut(layer, inputs, outputs) if own.cut is not None else _by_size(layer, own, inputs, kept_out)


def _by_size(layer: nn.Module, own: OwnLayer, kept_in: Tensor, kept_out: Tensor) -> Cut:
    """The cut of a user's layer: as the torch.nn layer it is derived from, and its other tensors by their size."""
    outputs = kept_out.nonzero()[:, 0]
    base = cut_rule(layer, kept_in, outputs) if has_cut_rule(type(layer)) else Cut()
    if own.cut_axes is not None:
        slices = {name: {axis: outputs} for name, axis in own.cut_axes.items()}
    else:
        tensors = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        slices = {name: {0: outputs} for name, t in tensors if t.ndim and len(t) == len(kept_out)}
    attributes = dict.fromkeys(own.attributes, len(outputs))
    return Cut({**slices, **base.slices}, {**base.attributes, **attributes})


def cut_layer(layer: nn.Module, cut: Cut) -> nn.Module:
    """A new layer of the same type with the remaining slices; ``layer`` is not changed and shares nothing with it."""
    small = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):  # hooks and the like
            small.__dict__[name] = copy.copy(value)
    for attribute, value in cut.attributes.items():
        object.__setattr__(small, attribute, value)
    small.__dict__["_parameters"] = {
        name: None if p is None else nn.Parameter(cut.take(name, p), requires_grad=p.requires_grad)
        for name, p in layer._parameters.items()
    }
    small.__dict__["_buffers"] = {name: None if b is None else cut.take(name, b) for name, b in layer._buffers.items()}
    if any(True for _ in layer.children()):
        memo: dict[int, Any] = {}  # one for all, so that what they share stays shared
        children = {name: m if m is None else copied(m, memo) for name, m in layer._modules.items()}
        small.__dict__["_modules"] = children
    return small
