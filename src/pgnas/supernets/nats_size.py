"""NATS-Bench's size space: a fixed cell, and a width to choose for each cell and each reduction.

With one cell a stage there are five widths c1..c5, each a multiple of 8 up to 64. c1 is the stem's and the first
cell's, c2 the first reduction's, c3 the second cell's, c4 the second reduction's, c5 the last cell's. A node inside a
cell has the cell's width, the value inside a reduction the reduction's; sums tie them. So there is one gate a width,
shared by every layer that reads a value of that width (:func:`size_ties`).

The cell's skip connection is the identity where the widths on both sides agree and a 1x1 convolution with BN where they
do not. In a supernet the two sides must be free to differ, so its skip is a convolution everywhere but in the first
cell (``skips=conv``, the default); ``skips=published`` builds the benchmark's own network, whose sides share one gate
where the skip is an identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import nn

from pgnas.architecture import Architecture
from pgnas.errors import ArchitectureError, ModelError
from pgnas.supernets.nats_cells import EDGES, Edge, parse_cell
from pgnas.supernets.nats_parts import Cell, NatsNetwork, Projection, edge_name, is_reduction, places
from pgnas.supernets.parts import require_choice, require_range
from pgnas.supernets.registry import register

SIZE_CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
"""The cell of every network of the size space."""
LARGEST, MULTIPLE = 64, 8
"""Widths of the size space are multiples of ``MULTIPLE`` up to ``LARGEST``."""
SKIP_EDGE: Edge = (0, 3)
_CELL = parse_cell(SIZE_CELL)
_SKIPS = ("conv", "published")


def size_ties(network: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The layers that share a gate, a tuple a gate: those that read values of one width."""
    return tuple(dict.fromkeys(_readers(network)))


def kept_widths(network: nn.Module, architecture: Architecture) -> tuple[int, ...]:
    """How many channels an architecture keeps of each width of a network of this family, c1 first.

    Args:
        network: The network that the supernet was made of, with the ties of :func:`size_ties`.
        architecture: An architecture of that supernet.

    Raises:
        ArchitectureError: The architecture has other gates.
        ModelError: ``network`` is not of this family.
    """
    gates = [layers[0] for layers in _readers(network)]
    if set(gates) != set(architecture.sizes):
        raise ArchitectureError(
            "architecture",
            f"must have the gates {', '.join(dict.fromkeys(gates))} of a nats-size supernet with one gate a width",
            value=", ".join(sorted(architecture.sizes)[:3]),
            remedy="make the supernet with tie=size_ties(network)",
        )
    reads = [cast(nn.Conv2d, network.get_submodule(gate)).weight.shape[1] for gate in gates]
    per_unit = [read // architecture.sizes[gate] for gate, read in zip(gates, reads, strict=True)]
    return tuple(len(architecture.kept[gate]) * unit for gate, unit in zip(gates, per_unit, strict=True))


def size_macs(
    widths: Sequence[float],
    *,
    image_size: int = 32,
    in_channels: int = 3,
    num_classes: int = 10,
    skips: str = "published",
) -> float:
    """Multiply-adds of a network of these widths for one image; the benchmark's ``flops`` are ``num_classes`` more.

    The benchmark counts the classifier's bias. Widths may be fractions; sides are halved and rounded up.
    """
    pixels, reads = image_size**2, widths[0]
    total = 9 * in_channels * widths[0] * pixels
    for place, width in enumerate(widths):
        if is_reduction(place, len(widths)):
            image_size = -(-image_size // 2)
            pixels = image_size**2
            total += pixels * (9 * reads * width + 9 * width * width + reads * width)
        else:
            from_input = sum(edge[0] == 0 and edge != SKIP_EDGE for edge in EDGES)
            total += 9 * pixels * width * (from_input * reads + (len(EDGES) - 1 - from_input) * width)
            if reads != width or (skips == "conv" and place > 0):
                total += pixels * reads * width
        reads = width
    return total + reads * num_classes


def _readers(network: nn.Module) -> list[tuple[str, ...]]:
    """For each width the layers that read values of it; the same tuple where an identity joins two widths."""
    if not isinstance(network, NatsNetwork):
        raise ModelError("network", "must be of the family nats-size", value=type(network).__name__, remedy="pass one")
    cells = list(network.cells)
    inner = [_inner_readers(place, cell) for place, cell in enumerate(cells)]
    outer = [*(_input_readers(place, cell) for place, cell in enumerate(cells)), ("classifier",)]
    readers = [(*inside, *following) for inside, following in zip(inner, outer[1:], strict=True)]
    readers[0] = (*outer[0], *readers[0])
    for place, (before, here) in enumerate(pairwise(readers), start=1):
        if _is_identity(cells[place]):
            both = tuple(dict.fromkeys((*before, *here)))
            readers = [both if layers in (before, here) else layers for layers in readers]
    return readers


def _inner_readers(place: int, cell: nn.Module) -> tuple[str, ...]:
    if not isinstance(cell, Cell):
        return (f"cells.{place}.conv_b.conv",)
    return tuple(_conv(place, edge) for edge in EDGES if edge[0] > 0)


def _input_readers(place: int, cell: nn.Module) -> tuple[str, ...]:
    if not isinstance(cell, Cell):
        return f"cells.{place}.conv_a.conv", f"cells.{place}.shortcut"
    convolutions = tuple(_conv(place, edge) for edge in EDGES if edge[0] == 0 and edge != SKIP_EDGE)
    if _is_identity(cell):
        return convolutions
    return (*convolutions, _conv(place, SKIP_EDGE, _skip_of(cell)))


def _conv(place: int, edge: Edge, operation: str = "nor_conv_3x3") -> str:
    return f"cells.{place}.edges.{edge_name(edge)}.{operation}.conv"


def _skip_of(cell: Cell) -> str:
    (name,) = dict(cell.edges[edge_name(SKIP_EDGE)].named_children())
    return name


def _is_identity(cell: nn.Module) -> bool:
    """Whether the cell's skip is an identity."""
    if not isinstance(cell, Cell):
        return False
    return not isinstance(cell.edges[edge_name(SKIP_EDGE)].get_submodule(_skip_of(cell)), Projection)


@register("nats-size", "NATS-Bench's size space: a fixed cell, five widths up to 64", width="width", ties=size_ties)
def nats_size(
    *,
    in_channels: int = 3,
    num_classes: int = 10,
    width: int = LARGEST,
    widths: str = "",
    cells: int = 1,
    skips: str = "conv",
) -> nn.Module:
    """Build a network of the size space.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes.
        width: Every width.
        widths: The width of each of the 3 * cells + 2 cells and reductions, ``"64-32-32-64-64"``, instead of ``width``.
        cells: Cells a stage; the benchmark's networks have one.
        skips: ``conv``, as a supernet needs them, or ``published``; see the module's docstring.
    """
    require_range("nats-size", width=width)
    require_range("nats-size", most=64, cells=cells)
    require_choice("nats-size", "skips", skips, _SKIPS)
    chosen = _parse_widths(widths, places(cells)) if widths else (width,) * places(cells)

    def make_cell(place: int, reads: int, makes: int) -> Cell:
        operations = {edge: [operation] for edge, operation in _CELL.items()}
        if skips == "conv" and place > 0:
            operations[SKIP_EDGE] = ["projection"]
        return Cell(reads, makes, operations)

    return NatsNetwork(in_channels=in_channels, num_classes=num_classes, widths=chosen, make_cell=make_cell)


def _parse_widths(text: str, count: int) -> tuple[int, ...]:
    parts = text.split("-")
    if len(parts) != count or not all(part.isascii() and part.isdigit() for part in parts):
        raise ModelError(
            "nats-size widths",
            f"must be {count} numbers, one for each cell and reduction",
            value=repr(text),
            remedy="write for example widths=" + "-".join([str(LARGEST)] * count),
        )
    chosen = tuple(int(part) for part in parts)
    require_range("nats-size", **{f"width {place + 1}": width for place, width in enumerate(chosen)})
    return chosen
