"""The cells of NATS-Bench as data: operations, edges, and the benchmark's strings for them.

A cell has four nodes: node 0 is its input, node 3 its output, and an edge goes from every node to every later one with
one of five operations. Dong et al., "NATS-Bench: Benchmarking NAS Algorithms for Architecture Topology and Size", 2021.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from pgnas.errors import ModelError

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""The operation with each of the benchmark's codes 0 to 4."""
NODES = 4
EDGES = tuple((source, target) for target in range(1, NODES) for source in range(target))
"""All edges (source, target) in the order in which the benchmark's strings list them."""

Edge = tuple[int, int]
CellChoice = Mapping[Edge, str]
"""One operation for each of ``EDGES``."""


def format_cell(cell: CellChoice) -> str:
    """The benchmark's string: ``"|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"``.

    Raises:
        ModelError: An edge has no operation or one that does not exist.
    """
    missing = [edge for edge in EDGES if cell.get(edge) not in OPERATIONS]
    if missing or len(cell) != len(EDGES):
        raise ModelError(
            "cell",
            f"must have one of {', '.join(OPERATIONS)} on each of its {len(EDGES)} edges",
            value=dict(cell),
            remedy="name an operation for every edge (source, target) of EDGES",
        )
    nodes = ("".join(f"|{cell[source, target]}~{source}" for source in range(target)) for target in range(1, NODES))
    return "+".join(f"{node}|" for node in nodes)


def parse_cell(text: str) -> dict[Edge, str]:
    """The inverse of :func:`format_cell`.

    Raises:
        ModelError: ``text`` is no such string.
    """
    operations = [part.partition("~")[0] for part in text.replace("+", "").split("|") if part]
    cell = dict(zip(EDGES, operations, strict=False))
    known = len(operations) == len(EDGES) and all(operation in OPERATIONS for operation in operations)
    if not known or format_cell(cell) != text:
        example = format_cell(dict.fromkeys(EDGES, "nor_conv_3x3"))
        remedy = f"write for example {example}, with the operations {', '.join(OPERATIONS)}"
        raise ModelError("cell", "must be a string of NATS-Bench's form", value=repr(text), remedy=remedy)
    return cell


def connected(cell: CellChoice) -> dict[Edge, str]:
    """The same cell with ``none`` where an operation lies on no path from the input to the output.

    What it makes of the image then reaches nothing, or it makes nothing of it.
    """
    used = {edge for edge in EDGES if cell[edge] != "none"}
    reached, reaching = {0}, {NODES - 1}
    for source, target in sorted(used, key=lambda edge: edge[1]):
        if source in reached:
            reached.add(target)
    for source, target in sorted(used, key=lambda edge: -edge[0]):
        if target in reaching:
            reaching.add(source)
    return {(s, t): cell[s, t] if s in reached and t in reaching else "none" for s, t in EDGES}


def all_cells() -> Iterator[dict[Edge, str]]:
    """Every cell: 5^6 = 15,625."""
    for operations in itertools.product(OPERATIONS, repeat=len(EDGES)):
        yield dict(zip(EDGES, operations, strict=True))
