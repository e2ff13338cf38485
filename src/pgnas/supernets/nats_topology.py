"""NATS-Bench's topology space (NAS-Bench-201): one cell, used everywhere, with an operation to choose for each edge.

``nats-topology`` without a cell is the supernet: every edge is a choice of one operation, the same in all cells. The
operation ``none`` has no module there. :func:`operation_modules` says which modules an edge's choice opens in all cells
at once; with ``cell=STRING`` the network of that cell alone is built, and :func:`network_of` gives it the supernet's
weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from pgnas.architecture import Architecture
from pgnas.errors import ModelError
from pgnas.nn.choice import OneOf
from pgnas.supernets.nats_cells import EDGES, OPERATIONS, CellChoice, Edge, format_cell, parse_cell
from pgnas.supernets.nats_parts import STAGES, Cell, NatsNetwork, edge_name, places
from pgnas.supernets.parts import require_range
from pgnas.supernets.registry import register

SUMMED = tuple(operation for operation in OPERATIONS if operation != "none")
"""The operations that the supernet's edges sum."""


def choices_of(network: nn.Module) -> tuple[tuple[str, ...], ...]:
    """For each edge the choices on it, one a cell, which share a gate; nothing in a network of one cell."""
    places = [place for place, module in enumerate(_cells(network)) if isinstance(module, Cell)]
    found = [tuple(f"cells.{place}.edges.{edge_name(edge)}" for place in places) for edge in EDGES]
    return tuple(names for names in found if isinstance(network.get_submodule(names[0]), OneOf))


@register(
    "nats-topology",
    "NATS-Bench's topology space: cells of four nodes, five operations an edge",
    width="channels",
    ties=choices_of,
)
def nats_topology(
    *, in_channels: int = 3, num_classes: int = 10, channels: int = 16, cells: int = 5, cell: str = ""
) -> nn.Module:
    """Build the supernet of the topology space, or the network of one cell.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes.
        channels: Channels of the first stage; each later one has twice as many.
        cells: Cells a stage.
        cell: The benchmark's string of a cell; empty: the supernet.
    """
    require_range("nats-topology", channels=channels)
    require_range("nats-topology", most=64, cells=cells)
    operations: Mapping[Edge, Sequence[str]] = dict.fromkeys(EDGES, OPERATIONS)
    if cell:
        operations = {edge: (operation,) for edge, operation in parse_cell(cell).items()}
    return NatsNetwork(
        in_channels=in_channels,
        num_classes=num_classes,
        widths=[channels * 2 ** ((place + 1) // (cells + 1)) for place in range(places(cells))],
        make_cell=lambda place, reads, makes: Cell(reads, makes, operations),
    )


def operation_modules(network: nn.Module) -> dict[Edge, dict[str, tuple[str, ...]]]:
    """For each edge and each of ``OPERATIONS`` the modules that compute it, one a cell; ``none`` has none.

    A categorical choice an edge, shared by all cells, opens the modules of one operation and closes the others'.

    Raises:
        ModelError: ``network`` is not of this family.
    """
    at = [place for place, module in enumerate(_cells(network)) if isinstance(module, Cell)]

    def modules(edge: Edge, operation: str) -> tuple[str, ...]:
        return tuple(f"cells.{place}.edges.{edge_name(edge)}.{operation}" for place in at)

    return {
        edge: {operation: modules(edge, operation) if operation in SUMMED else () for operation in OPERATIONS}
        for edge in EDGES
    }


def chosen_cell(architecture: Architecture) -> dict[Edge, str]:
    """The cell that an architecture of the supernet chooses, its first one's.

    Raises:
        ModelError: It is of another network, or keeps several operations on an edge.
    """
    gates = {edge: f"cells.0.edges.{edge_name(edge)}" for edge in EDGES}
    kept = {edge: architecture.kept.get(gate, ()) for edge, gate in gates.items()}
    if not all(len(units) == 1 for units in kept.values()):
        raise ModelError(
            "architecture", "must choose one operation an edge", remedy="pass one of a nats-topology search"
        )
    return {edge: OPERATIONS[units[0]] for edge, units in kept.items()}


def network_of(supernet: nn.Module, cell: CellChoice) -> nn.Module:
    """The network of one cell with the weights that it has in the supernet; the supernet is left as it is.

    Args:
        supernet: A network of this family with all operations on every edge.
        cell: The operation on each edge.

    Raises:
        ModelError: ``supernet`` is none, or ``cell`` is no cell.
    """
    if not isinstance(supernet, NatsNetwork):
        raise _no_supernet(type(supernet).__name__)
    stem, weights = supernet.get_submodule("stem.0"), supernet.state_dict()
    assert isinstance(stem, nn.Conv2d)
    found = nats_topology(
        in_channels=stem.in_channels,
        num_classes=supernet.classifier.out_features,
        channels=stem.out_channels,
        cells=(len(supernet.cells) - STAGES + 1) // STAGES,
        cell=format_cell(cell),
    )
    missing = sorted(set(found.state_dict()) - set(weights))
    if missing:
        raise _no_supernet(f"no weights {missing[0]}")
    found.load_state_dict({name: weights[name].clone() for name in found.state_dict()})
    first = next(supernet.parameters())
    return found.to(device=first.device, dtype=first.dtype).train(supernet.training)


def _cells(network: nn.Module) -> nn.ModuleList:
    if not isinstance(network, NatsNetwork):
        raise _no_supernet(type(network).__name__)
    return network.cells


def _no_supernet(value: str) -> ModelError:
    return ModelError(
        "supernet",
        "must be a nats-topology network with all operations on every edge",
        value=value,
        remedy="build it with nats_topology(channels=..., cells=...)",
    )
