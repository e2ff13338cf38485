"""Small networks for the tests of descriptions."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pgnas.description import describe, opened


class Block(nn.Module):
    """Convolutions, BatchNorm, a concatenation, slices, a selection and an own parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.scale = nn.Parameter(torch.rand(1, 4, 1, 1))
        self.register_buffer("order", torch.tensor([3, 1, 0]))
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x) * self.scale
        y = torch.cat([y, y.index_select(1, self.order)], 1)
        y = F.avg_pool2d(y[..., 1:, :], 2).view(x.size(0), 7, -1).mean(-1)
        return self.head(y)


def network() -> fx.GraphModule:
    """A traced one with weights that are always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return opened(fx.symbolic_trace(Block()).eval())


EXAMPLE = torch.zeros(1, 2, 5, 6)


def description() -> dict[str, Any]:
    """Its description, fresh, as JSON values."""
    value: dict[str, Any] = json.loads(json.dumps(describe(network(), EXAMPLE)))
    return value
