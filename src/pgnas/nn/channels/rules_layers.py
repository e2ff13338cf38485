"""Rules of layers that mix channels (convolution, linear) or treat each channel alone (activation, pooling, BatchNorm)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name for it

from pgnas.nn.channels.graph import ChannelGraph
from pgnas.nn.channels.ops import Barrier, ChannelOp, Follow, Value, rule, spread

if TYPE_CHECKING:
    from pgnas.nn.rebuild import Builder

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
ConvTranspose = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


@dataclass(frozen=True)
class Dense(ChannelOp):
    """Convolution or linear layer: within a group, every output channel reads every input channel.

    Attributes:
        module: The layer's name.
        groups: The number of groups; 1 for an ordinary layer.
    """

    module: str
    groups: int = 1

    @property
    def per_group(self) -> int:
        """Input channels of one group."""
        return self.values[0].channels // self.groups

    def push(self, rows: list[Tensor]) -> Tensor:
        """Group by group."""
        return self._exchange(rows[0], self.value.channels)

    def pull(self, rows: Tensor) -> list[Tensor]:
        """Group by group."""
        return [self._exchange(rows, self.values[0].channels)]

    def widen(self, need: Tensor) -> Tensor:
        """Whole groups: a grouped convolution has equally many outputs in each."""
        return need if self.groups == 1 else self._exchange(need[:, None], len(need))[:, 0]

    def build(self, builder: Builder, kept: Tensor, reads: list[Tensor]) -> fx.Node:
        """A narrower layer, plus what its constant inputs contribute."""
        builder.cut_layer(self.module, kept_in=reads[0], kept_out=kept)
        return builder.add_contribution(self, builder.copy(self, reads), kept)

    def _exchange(self, rows: Tensor, channels: int) -> Tensor:
        if self.groups == 1:
            return spread(rows, channels)
        by_group = rows.reshape(self.groups, -1, rows.shape[1]).amax(1)
        return by_group.repeat_interleave(channels // self.groups, 0)


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def convolution(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Plain, grouped, depthwise and transposed convolutions."""
    layer = graph.layer(node)
    assert isinstance(layer, Conv | ConvTranspose)
    shape = graph.shape(node)
    if shape is None or len(shape) != layer.weight.ndim:
        return "its input has no batch axis"
    source = node.args[0] if node.args else node.kwargs["input"]
    if layer.groups > 1 and isinstance(layer, ConvTranspose):
        return "grouped transposed convolution"
    if layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:
        return graph.follow(node, module=str(node.target))
    assert isinstance(source, fx.Node)
    return _dense(node, source, graph, axis=1, outputs=layer.out_channels, groups=layer.groups)


@rule(nn.Linear)
def linear(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Linear layers; the channels are the last axis."""
    layer = graph.layer(node)
    assert isinstance(layer, nn.Linear)
    shape = graph.shape(node)
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    if shape is None or len(shape) < 2:
        return "its input has no batch axis"
    return _dense(node, source, graph, axis=len(shape) - 1, outputs=layer.out_features)


def _dense(
    node: fx.Node, source: fx.Node, graph: ChannelGraph, *, axis: int, outputs: int, groups: int = 1
) -> ChannelOp:
    value = graph.value(source)
    if value.axis != axis:
        return Barrier(
            node.name, (source.name,), (value,), Value(axis, outputs), "its input's channels could not be followed"
        )
    return Dense(
        node.name, (source.name,), (value,), Value(axis, outputs), module=str(node.target), groups=groups
    )


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def batch_norm(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """BatchNorm: its statistics, scale and shift follow the channels (axis 1)."""
    source = node.args[0] if node.args else None
    if isinstance(source, fx.Node) and graph.value(source).axis != 1:
        return "its input's channels could not be followed"
    return graph.follow(node, module=str(node.target))


@rule(nn.PReLU)
def prelu(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """PReLU, with one slope or one a channel."""
    layer = graph.layer(node)
    assert isinstance(layer, nn.PReLU)
    return graph.follow(node, module=str(node.target) if layer.num_parameters > 1 else None)


@rule(
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.LogSigmoid,
    nn.Threshold, nn.Hardshrink, nn.Softshrink,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.LPPool1d, nn.LPPool2d,
    nn.Upsample, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d,
)  # fmt: skip
def channelwise_layer(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Layers without parameters that treat each channel alone."""
    return graph.follow(node)


@rule(
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh, F.hardswish,
    F.hardsigmoid, F.hardtanh, F.softplus, F.dropout, F.dropout2d, F.dropout3d,
    torch.relu, torch.sigmoid, torch.tanh, torch.abs, torch.exp, torch.sqrt, torch.square, torch.neg, torch.clamp,
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, F.interpolate,
    "relu", "sigmoid", "tanh", "abs", "exp", "sqrt", "square", "neg", "clamp", "contiguous", "clone", "detach",
    "float", "half", "bfloat16", "double", "to", "type_as",
)  # fmt: skip
def channelwise_function(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Functions and methods that treat each channel alone."""
    return graph.follow(node)
