"""Cells of the ENAS micro search space (Pham et al. 2018), as the fixed-architecture network of its code has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pgnas.errors import ModelError
from pgnas.supernets.parts import FactorizedReduction

EPS = 1e-3  # of all BatchNorms, as in the ENAS code
IDENTITY = 4


@dataclass(frozen=True)
class Arc:
    """A cell's plan.

    Attributes:
        nodes: For each node (input, operation, input, operation); inputs 0 and 1 are the cell's own, 2 is node 0.
    """

    nodes: tuple[tuple[int, int, int, int], ...]

    @property
    def loose_ends(self) -> tuple[int, ...]:
        """The values that no node reads: what the cell gives."""
        read = {index for a, _, b, _ in self.nodes for index in (a, b)}
        return tuple(index for index in range(len(self.nodes) + 2) if index not in read)


def parse_arc(name: str, text: str) -> Arc:
    """Read an arc as the ENAS code writes it: four numbers a node.

    Raises:
        ModelError: It is none.
    """
    words = text.split()
    numbers = [int(word) for word in words if word.isascii() and word.isdigit()]
    nodes = tuple((a, p, b, q) for a, p, b, q in zip(*(iter(numbers),) * 4, strict=False))
    complete = len(words) == len(numbers) == 4 * len(nodes) > 0
    if not complete or any(max(a, b) > 1 + i or max(p, q) > IDENTITY for i, (a, p, b, q) in enumerate(nodes)):
        raise ModelError(
            f"enas-micro {name}",
            "must be four numbers a node: an input that comes before it and an operation in [0, 4], twice",
            value=repr(text),
            remedy="write for example '0 2 0 0 0 4 0 1'",
        )
    return Arc(nodes)


class DropPath(nn.Module):
    """In training, an operation's whole output is dropped for an example with probability ``p``, and else scaled up.

    Attributes:
        final: The probability at the end of training, in [0, 1).
        p: The probability now, a scalar: ``final`` until :func:`ramp_drop_path` says otherwise.
    """

    p: Tensor

    def __init__(self, final: float) -> None:
        super().__init__()
        self.final = final
        # a tensor: a compiled network would be compiled again for every new Python number
        self.register_buffer("p", torch.tensor(final), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """A value (B, ...); in evaluation the very same."""
        if not self.training:
            return x
        keep = 1.0 - self.p
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) < keep
        return x * (kept / keep).to(x.dtype)

    def extra_repr(self) -> str:
        """The probability at the end."""
        return f"final={self.final}"


def ramp_drop_path(network: nn.Module, progress: float) -> None:
    """Set every :class:`DropPath` in ``network`` to ``progress`` times its final probability, as the ENAS code does.

    Args:
        network: The network, or a supernet or a smaller network made of it.
        progress: The share of the training steps that are done, in [0, 1].
    """
    for layer in network.modules():
        if isinstance(layer, DropPath):
            layer.p.fill_(min(1.0, max(0.0, progress)) * layer.final)


def _relu_conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, eps=EPS))


def _separable(kernel: int) -> Callable[[int, int], nn.Module]:
    """A separable convolution applied twice: ReLU, depthwise, pointwise, BN; the first depthwise has the stride."""

    def build(filters: int, stride: int) -> nn.Module:
        layers: list[nn.Module] = []
        for step in (stride, 1):
            layers += [
                nn.ReLU(),
                nn.Conv2d(filters, filters, kernel, step, kernel // 2, groups=filters, bias=False),
                nn.Conv2d(filters, filters, 1, bias=False),
                nn.BatchNorm2d(filters, eps=EPS),
            ]
        return nn.Sequential(*layers)

    return build


def _average_pool(filters: int, stride: int) -> nn.Module:
    return nn.AvgPool2d(3, stride, 1, count_include_pad=False)


def _max_pool(filters: int, stride: int) -> nn.Module:
    return nn.MaxPool2d(3, stride, 1)


def _identity(filters: int, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduction(filters, filters, eps=EPS)


OPERATIONS = (_separable(3), _separable(5), _average_pool, _max_pool, _identity)


class Cell(nn.Module):
    """A cell: nodes that each add two operations on earlier values; the values that nothing read are concatenated.

    Args:
        arc: Its plan.
        inputs: Channels of the two cells before it, the nearer last.
        halve: Whether the farther one has twice this cell's input resolution.
        filters: Channels of every node.
        stride: 1, or 2 for a reduction cell.
        drop: Drop-path probability of its operations, identities aside.
    """

    def __init__(
        self, arc: Arc, inputs: tuple[int, int], *, halve: bool, filters: int, stride: int, drop: float
    ) -> None:
        super().__init__()
        self.arc = arc
        farther: nn.Module = nn.Identity()
        if halve:
            farther = nn.Sequential(nn.ReLU(), FactorizedReduction(inputs[0], filters, eps=EPS))
        elif inputs[0] != filters:
            farther = _relu_conv(inputs[0], filters)
        self.farther = farther
        self.nearer = nn.Identity() if inputs[1] == filters else _relu_conv(inputs[1], filters)
        self.base = _relu_conv(filters, filters)
        self.operations = nn.ModuleList()
        for a, p, b, q in arc.nodes:
            for source, operation in ((a, p), (b, q)):
                layer = OPERATIONS[operation](filters, stride if source < 2 else 1)
                drops = operation != IDENTITY and drop > 0
                self.operations.append(nn.Sequential(layer, DropPath(drop)) if drops else layer)
        unread = [index for index in arc.loose_ends if index < 2 and stride == 2]
        self.reductions = nn.ModuleDict({str(i): FactorizedReduction(filters, filters, eps=EPS) for i in unread})

    def forward(self, farther: Tensor, nearer: Tensor) -> Tensor:
        """The two cells before, (B, inputs, H, W), to (B, loose ends * filters, H / stride, W / stride)."""
        values = [self.farther(farther), self.base(self.nearer(nearer))]
        for node, (a, _, b, _) in enumerate(self.arc.nodes):
            values.append(self.operations[2 * node](values[a]) + self.operations[2 * node + 1](values[b]))
        for index, reduction in self.reductions.items():
            values[int(index)] = reduction(values[int(index)])
        return torch.cat([values[index] for index in self.arc.loose_ends], 1)
