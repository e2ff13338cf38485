"""A family of networks of your own, by name and with parameters, as pgnas's own are.

Run it: python examples/supernet.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import pgnas
from pgnas.supernets import register


class Choice(nn.Module):
    """Three parallel ways from one value to the next: gates decide which are kept, and how wide."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.ways = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False), nn.BatchNorm2d(outputs))
            for size in (1, 3, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.stack([way(x) for way in self.ways]).sum(0))


class Choices(nn.Module):
    """A stem, choices, and a classifier. Plain PyTorch: nothing of it knows about gates."""

    def __init__(self, in_channels: int, num_classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.body = nn.Sequential(*(Choice(width, width) for _ in range(depth)))
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(self.stem(x)).mean((2, 3)))


@register("choices", "stem, layers of parallel 1x1, 3x3 and 5x5 convolutions, classifier", width="width", image_size=8)
def choices(in_channels: int, num_classes: int, *, width: int = 16, depth: int = 2) -> nn.Module:
    """Build one; the types of the defaults are those of the parameters in ``choices:width=8,depth=1``."""
    return Choices(in_channels, num_classes, width, depth)


def main() -> None:
    """The whole path, by name; ``width=`` in ``register`` lets ``baseline="uniform"`` scale the family."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        result = pgnas.run(
            model="choices:width=8,depth=1",
            data="digits",
            out=out,
            max_macs="50%",
            epochs=2,
            candidates=4,
            batch_size=256,
        )
        print("\n".join(result.summary()[:4]))
        network = pgnas.load(out)  # needs neither this file nor its classes
        print(network(torch.zeros(1, 1, 8, 8)).shape)


if __name__ == "__main__":
    main()
