"""Rules of layers that mix channels (convolution, linear) or treat each alone (activation, pooling)."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pgnas.nn.channels.graph import ChannelGraph
from pgnas.nn.channels.ops import ChannelOp, Follow, Value, first_input, rule, spread
from pgnas.nn.choice import OutputGate
from pgnas.nn.macs import Conv, ConvTranspose

if TYPE_CHECKING:
    from pgnas.nn.rebuild import Builder

NOT_FOLLOWED = "its input's channels could not be followed"


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
        return by_group(rows, self.groups, channels)


@dataclass(frozen=True)
class OperationOutput(Follow):
    """The output of an operation that may be dropped: it is handed on, and nothing of the mark is left."""

    def build(self, builder: Builder, kept: Tensor, reads: list[Tensor]) -> fx.Node:
        """The operation's output itself; a supernet that sheds goes on gating it."""
        return builder.operation_output(self, reads)


def by_group(rows: Tensor, groups: int, channels: int) -> Tensor:
    """The column-wise maximum of each group of rows, repeated for each of its share of ``channels``."""
    return rows.reshape(groups, -1, rows.shape[1]).amax(1).repeat_interleave(channels // groups, 0)


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def convolution(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Plain, grouped, depthwise and transposed convolutions."""
    layer = graph.layer(node)
    assert isinstance(layer, Conv | ConvTranspose)
    shape = graph.shape(node)
    if shape is None or len(shape) != len(layer.kernel_size) + 2:  # a weight that is read may be computed
        return "its input has no batch axis"
    source = first_input(node)
    if source is None or graph.value(source).axis != 1:
        return NOT_FOLLOWED
    if layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:
        return graph.follow(node, module=str(node.target))
    return _dense(node, source, graph, axis=1, outputs=layer.out_channels, groups=layer.groups)


@rule(nn.Linear)
def linear(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Linear layers; the channels are the last axis."""
    layer = graph.layer(node)
    assert isinstance(layer, nn.Linear)
    shape = graph.shape(node)
    source = first_input(node)
    if shape is None or len(shape) < 2:
        return "its input has no batch axis"
    if source is None or graph.value(source).axis != len(shape) - 1:
        return NOT_FOLLOWED
    return _dense(node, source, graph, axis=len(shape) - 1, outputs=layer.out_features)


def _dense(node: fx.Node, source: fx.Node, graph: ChannelGraph, *, axis: int, outputs: int, groups: int = 1) -> Dense:
    made = Value(axis, outputs)
    return Dense(node.name, (source.name,), (graph.value(source),), made, module=str(node.target), groups=groups)


@rule(OutputGate)
def operation_output(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """The mark at an operation's output."""
    found = graph.follow(node)
    return OperationOutput(found.name, found.inputs, found.values, found.value) if isinstance(found, Follow) else found


@rule(nn.PReLU)
def prelu(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """PReLU, with one slope or one a channel."""
    layer, source = graph.layer(node), first_input(node)
    assert isinstance(layer, nn.PReLU)
    if layer.num_parameters > 1 and (source is None or graph.value(source).axis != 1):
        return NOT_FOLLOWED
    return graph.follow(node, module=str(node.target) if layer.num_parameters > 1 else None)


@rule(
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.LogSigmoid,
    nn.Threshold, nn.Hardshrink, nn.Softshrink, nn.RReLU,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
)  # fmt: skip
def channelwise_layer(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Layers without parameters that treat each number alone."""
    return graph.follow(node)


@rule(
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh, F.hardswish,
    F.hardsigmoid, F.hardtanh, F.softplus, F.dropout, F.dropout2d, F.dropout3d,
    torch.relu, torch.sigmoid, torch.tanh, torch.abs, torch.exp, torch.sqrt, torch.square, torch.neg, torch.clamp,
    torch.clamp_min, torch.clamp_max, torch.log, torch.rsqrt, torch.reciprocal, torch.erf, torch.sin, torch.cos,
    F.logsigmoid, F.softsign, F.tanhshrink, F.hardshrink, F.softshrink, F.threshold, F.rrelu, F.alpha_dropout,
    F.dropout1d, operator.neg, operator.pow, torch.pow,
    "clamp_min", "clamp_max", "log", "rsqrt", "reciprocal", "erf", "sin", "cos",
    "relu", "sigmoid", "tanh", "abs", "exp", "sqrt", "square", "neg", "pow", "clamp", "clone", "detach",
    "float", "half", "bfloat16", "double", "to", "type_as",
)  # fmt: skip
def channelwise_function(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Functions and methods that treat each number alone."""
    return graph.follow(node)


@rule(
    nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.LPPool1d,
    nn.ZeroPad1d, nn.ConstantPad1d, nn.ReflectionPad1d, nn.ReplicationPad1d,
    F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d, F.adaptive_max_pool1d,
)  # fmt: skip
def spatial_1d(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Poolings and paddings of the last axis."""
    return _spatial(node, graph, 1)


@rule(
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d,
    nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
)  # fmt: skip
def spatial_2d(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Poolings and paddings of the last two axes."""
    return _spatial(node, graph, 2)


@rule(
    nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d, nn.ZeroPad3d, nn.ConstantPad3d,
    F.max_pool3d, F.avg_pool3d, F.adaptive_avg_pool3d, F.adaptive_max_pool3d,
)  # fmt: skip
def spatial_3d(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Poolings and paddings of the last three axes."""
    return _spatial(node, graph, 3)


@rule(nn.Upsample, F.interpolate)
def resize(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Resizing of all axes after the channels'."""
    return _spatial(node, graph, len(graph.shape(node) or ()) - 2)


def _spatial(node: fx.Node, graph: ChannelGraph, dimensions: int) -> ChannelOp | str:
    """Channel by channel, if the channels lie before the last ``dimensions`` axes."""
    shape, source = graph.shape(node), first_input(node)
    if shape is None or source is None or graph.value(source).axis != len(shape) - dimensions - 1:
        return NOT_FOLLOWED
    if graph.value(source).axis == 0:
        return "its input has no batch axis"
    return graph.follow(node)
