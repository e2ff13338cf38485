"""What both search spaces of NATS-Bench are built of: operations, cells, reductions, the macro skeleton.

As in the benchmark's published networks, with N cells a stage: a 3x3 convolution and BN; N cells, a residual block that
halves the resolution, N cells, another such block, N cells; BN, ReLU, global average pooling and a linear classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from pgnas.nn.choice import OneOf
from pgnas.supernets.nats_cells import EDGES, NODES, Edge

STAGES = 3


class ReluConvNorm(nn.Module):
    """ReLU-Conv-BN, as every convolution of the benchmark but the stem's and the shortcuts' is.

    Args:
        inputs: Channels read.
        outputs: Channels made.
        kernel: Side of the kernel, odd.
        stride: Stride of the convolution.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        y: Tensor = self.bn(self.conv(F.relu(x)))
        return y


class Projection(nn.Module):
    """A skip connection that changes the width: a 1x1 convolution and BN, without ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        y: Tensor = self.bn(self.conv(x))
        return y


class Zero(nn.Module):
    """The operation ``none``: nothing comes through."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the shape of x."""
        return x * 0.0


def _skip(inputs: int, outputs: int) -> nn.Module:
    return nn.Identity() if inputs == outputs else Projection(inputs, outputs)


MAKERS: dict[str, Callable[[int, int], nn.Module]] = {
    "none": lambda inputs, outputs: Zero(),
    "skip_connect": _skip,
    "projection": Projection,
    "nor_conv_1x1": lambda inputs, outputs: ReluConvNorm(inputs, outputs, 1),
    "nor_conv_3x3": lambda inputs, outputs: ReluConvNorm(inputs, outputs, 3),
    "avg_pool_3x3": lambda inputs, outputs: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
}
"""Operation to what makes it from its input and output channels; ``none`` and pooling keep the width."""


def edge_name(edge: Edge) -> str:
    """The edge's name among a cell's modules, ``"e01"``."""
    return f"e{edge[0]}{edge[1]}"


class Cell(nn.Module):
    """Four nodes; a node is the sum over its edges, and an edge one operation or a choice of several.

    Args:
        inputs: Channels of node 0.
        outputs: Channels of the other nodes.
        operations: Names of the operations on each edge: one in a network, several to choose from in a supernet.
    """

    def __init__(self, inputs: int, outputs: int, operations: Mapping[Edge, Sequence[str]]) -> None:
        super().__init__()
        self.edges = nn.ModuleDict()
        for source, target in EDGES:
            width = inputs if source == 0 else outputs
            named = operations[source, target]
            made = {name: MAKERS[name](width, outputs) for name in named if name != "none" or len(named) == 1}
            options = {name: made.get(name) for name in named}
            self.edges[edge_name((source, target))] = OneOf(options) if len(named) > 1 else nn.ModuleDict(made)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        nodes = [x]
        for target in range(1, NODES):
            edges = [(source, self.edges[edge_name((source, target))]) for source in range(target)]
            results = [
                operation(nodes[source])
                for source, edge in edges
                for operation in ([edge] if isinstance(edge, OneOf) else edge.children())
            ]
            nodes.append(sum(results[1:], start=results[0]))
        return nodes[-1]


class Reduction(nn.Module):
    """A residual block at half the resolution; its shortcut is a 2x2 average pooling and a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_a = ReluConvNorm(inputs, outputs, 3, 2)
        self.conv_b = ReluConvNorm(outputs, outputs, 3)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, ceil(H / 2), ceil(W / 2)); the benchmark's images have even sides."""
        pooled = F.avg_pool2d(x, 2, 2, ceil_mode=True)
        y: Tensor = self.shortcut(pooled) + self.conv_b(self.conv_a(x))
        return y


class NatsNetwork(nn.Module):
    """The macro skeleton of both spaces.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes.
        widths: Channels that each of the 3N + 2 cells and reductions makes; the stem makes ``widths[0]``.
        make_cell: Makes the cell at a place, from the place and the channels read and made.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        widths: Sequence[int],
        make_cell: Callable[[int, int, int], Cell],
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]))
        self.cells = nn.ModuleList()
        reads = widths[0]
        for place, width in enumerate(widths):
            reduces = is_reduction(place, len(widths))
            self.cells.append(Reduction(reads, width) if reduces else make_cell(place, reads, width))
            reads = width
        self.norm = nn.BatchNorm2d(reads)
        self.classifier = nn.Linear(reads, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_channels, H, W)."""
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x)
        x = F.adaptive_avg_pool2d(F.relu(self.norm(x)), 1).flatten(1)
        logits: Tensor = self.classifier(x)
        return logits


def places(cells: int) -> int:
    """How many cells and reductions a network with so many cells a stage has: 3N + 2."""
    return STAGES * cells + STAGES - 1


def is_reduction(place: int, total: int) -> bool:
    """Whether a reduction stands at this place of ``total``: after N and after 2N + 1 others."""
    stage = (total - STAGES + 1) // STAGES
    return place % (stage + 1) == stage and place < total
