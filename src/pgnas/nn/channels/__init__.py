"""Channel analysis: which channels of every value are needed, constant or dead."""

from pgnas.nn.channels import rules_layers as rules_layers
from pgnas.nn.channels import rules_moves as rules_moves
from pgnas.nn.channels import rules_norms as rules_norms
from pgnas.nn.channels import rules_parts as rules_parts
from pgnas.nn.channels import rules_products as rules_products
from pgnas.nn.channels import rules_shapes as rules_shapes
from pgnas.nn.channels.graph import ChannelGraph, Source, describe
from pgnas.nn.channels.ops import Barrier, ChannelOp, Follow, ReadShape, Value, rule
from pgnas.nn.channels.rules_layers import Dense
from pgnas.nn.channels.user_rules import channel_rule, mix, temporary_rules

__all__ = [
    "Barrier",
    "ChannelGraph",
    "ChannelOp",
    "Dense",
    "Follow",
    "ReadShape",
    "Source",
    "Value",
    "channel_rule",
    "describe",
    "mix",
    "rule",
    "temporary_rules",
]
