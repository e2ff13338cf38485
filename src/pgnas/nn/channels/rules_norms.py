"""Rules of normalisations: which channels share a statistic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, fx, nn

from pgnas.nn.channels.graph import ChannelGraph
from pgnas.nn.channels.ops import Barrier, ChannelOp, find_rule, first_input, rule
from pgnas.nn.channels.rules_layers import NOT_FOLLOWED, by_group, channelwise_layer

if TYPE_CHECKING:
    from pgnas.nn.rebuild import Builder

SEES_ALL = "its statistics see all channels"


@dataclass(frozen=True)
class GroupStatistics(ChannelOp):
    """GroupNorm: a group is normalised by all of its channels, and so goes or stays whole.

    Attributes:
        module: The layer's name.
        groups: The number of groups.
    """

    module: str
    groups: int

    def push(self, rows: list[Tensor]) -> Tensor:
        """A channel depends on what any of its group depends on."""
        return by_group(rows[0], self.groups, self.value.channels)

    def pull(self, rows: Tensor) -> list[Tensor]:
        """Its whole group is read."""
        return [by_group(rows, self.groups, self.value.channels)]

    def widen(self, need: Tensor) -> Tensor:
        """Whole groups."""
        return by_group(need[:, None].long(), self.groups, len(need))[:, 0] > 0

    def build(self, builder: Builder, kept: Tensor, reads: list[Tensor]) -> fx.Node:
        """The layer with fewer groups."""
        builder.cut_layer(self.module, kept_in=kept, kept_out=kept)
        return builder.copy(self, reads)


@rule(nn.GroupNorm)
def group_norm(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """GroupNorm, by whole groups; with one group its statistics see all channels."""
    layer, source = graph.layer(node), first_input(node)
    assert isinstance(layer, nn.GroupNorm)
    if source is None or graph.value(source).axis != 1:
        return NOT_FOLLOWED
    value = graph.value(source)
    if layer.num_groups == 1:
        return Barrier(node.name, (source.name,), (value,), value, SEES_ALL)
    return GroupStatistics(node.name, (source.name,), (value,), value, str(node.target), layer.num_groups)


@rule(nn.LayerNorm, nn.RMSNorm)
def layer_norm(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """LayerNorm and RMSNorm: every channel is needed, but they can be told apart behind it."""
    return _sees_all(node, graph)


@rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """InstanceNorm: each channel by itself, unless the layer takes the value for one example without a batch."""
    layer, source = graph.layer(node), first_input(node)
    if source is None or graph.value(source).axis != 1:
        return NOT_FOLLOWED
    batched = next(axes for kind, axes in _INSTANCE_NORM_AXES.items() if isinstance(layer, kind))
    if len(graph.shape(node) or ()) != batched:
        return _sees_all(node, graph)
    return graph.follow(node, module=str(node.target))


_INSTANCE_NORM_AXES = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def batch_norm(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """BatchNorm: its statistics, scale and shift follow the channels (axis 1); so do activations built into it."""
    layer, source = graph.layer(node), first_input(node)
    if source is None or graph.value(source).axis != 1:
        return NOT_FOLLOWED
    if layer is not None and any(find_rule(node, child) is not channelwise_layer for child in layer.children()):
        return f"no rule for a layer inside {type(layer).__name__}"
    return graph.follow(node, module=str(node.target))


def _sees_all(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    source = first_input(node)
    if source is None or graph.value(source).axis is None:
        return f"{SEES_ALL}, and which are they could not be followed"
    value = graph.value(source)
    return Barrier(node.name, (source.name,), (value,), value, SEES_ALL)
