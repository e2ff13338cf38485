"""Teach pgnas a layer of your own: one decorator, and a check of what it claims.

Run it: python examples/layer_rule.py
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

import pgnas
from pgnas.nn.channels import ChannelGraph, ChannelOp
from pgnas.testing import check_layer, temporary_rules


class Scale(nn.Module):
    """A learned factor and offset a channel: output channel c reads input channel c alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(channels, 1, 1))
        self.offset = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.offset, x, self.factor)


class Centre(nn.Module):
    """Subtracts the mean over the channels: every output channel reads every input channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


def register() -> None:
    """Two rules: that output channel c reads input channel c alone. It is true of Scale, and false of Centre."""

    @pgnas.channel_rule(Scale, Centre)
    def channel_by_channel(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
        return graph.follow(node)  # `factor` and `offset`, as long as the output channels, are cut along


def main() -> None:
    """Check both rules, and extract from a network with the layer whose rule holds."""
    with temporary_rules():  # forget them afterwards; a program of yours would just register
        register()
        report = check_layer(Scale(6), torch.randn(2, 6, 8, 8))
        print("Scale:", report.operations, f"largest difference {report.largest_difference:.1e}")
        try:
            check_layer(Centre(), torch.randn(2, 6, 8, 8))
        except pgnas.InputError as error:
            print("Centre:", error)
        else:
            raise SystemExit("a rule that does not hold was not found out")

        model = nn.Sequential(
            nn.Conv2d(1, 8, 3), Scale(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(10)
        )
        images = torch.randn(4, 1, 8, 8)
        model(images)  # makes the lazy layer
        supernet = pgnas.supernet(model, images).eval()
        architecture = supernet.sample(generator=torch.Generator().manual_seed(0))
        small = pgnas.extract(supernet, architecture)
        with torch.no_grad(), supernet.fixed(architecture):
            torch.testing.assert_close(small(images), supernet(images), rtol=1e-4, atol=1e-5)
        print("extracted:", supernet.count(architecture), "of", supernet.count(supernet.open()))


if __name__ == "__main__":
    main()
