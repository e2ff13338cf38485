"""What every operation of a network costs, a channel pair, an output channel and by itself: in MACs or parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from pgnas.nn.channels import Barrier, ChannelGraph, ChannelOp, Dense
from pgnas.nn.macs import Counted


@dataclass(frozen=True)
class Price:
    """What an operation costs: ``pair * (inputs x outputs) + output * outputs + constant``.

    Attributes:
        pair: Of one (input, output) channel pair within a group.
        output: Of one output channel.
        constant: Of running it at all.
    """

    pair: float = 0.0
    output: float = 0.0
    constant: float = 0.0


Prices = Mapping[str, Price]
"""Node name to its price; operations that cost nothing may be missing."""


def mac_prices(graph: ChannelGraph) -> Prices:
    """Multiply-adds for one example."""
    prices = {}
    for name, op in graph.ops.items():
        macs = graph.macs(name)
        if macs and isinstance(op, Barrier):
            prices[name] = Price(constant=macs)
        elif macs:
            inputs = op.values[0].channels if op.values else 0
            prices[name] = Price(pair=macs / pairs(op, inputs, op.value.channels))
    return prices


def pairs(op: ChannelOp, inputs: int, outputs: int) -> int:
    """How many (input, output) channel pairs an operation works on, with so many left; one an output if it mixes none.

    Args:
        op: The operation.
        inputs: Channels of its first input.
        outputs: Channels of its output.
    """
    if not isinstance(op, Dense):
        return outputs
    groups = max(1, inputs // op.per_group) if op.groups > 1 else 1
    return inputs * outputs // groups


def parameter_prices(graph: ChannelGraph) -> Prices:
    """Trainable numbers; a parameter that several operations share is counted at the last of them."""
    prices: dict[str, Price] = {}
    counted: set[int] = set()
    for name in reversed(graph.ops):
        layer = graph.layer(graph.nodes[name])
        if layer is not None and graph.is_cut(name):
            vectors = sum(p.ndim == 1 for p in layer.parameters(recurse=False))
            pair = _kernel(layer) if isinstance(layer, Counted) else 0
            prices[name] = Price(pair=pair, output=vectors)
        else:
            new = {id(p): p.numel() for p in graph.own_parameters(name) if id(p) not in counted}
            counted |= set(new)
            prices[name] = Price(constant=sum(new.values()))
    return prices


def _kernel(layer: Counted) -> int:
    return 1 if isinstance(layer, nn.Linear) else math.prod(layer.kernel_size)
