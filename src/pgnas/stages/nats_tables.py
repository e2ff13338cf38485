"""The tables of NATS-Bench: what its networks cost and what they achieved, trained for real.

A size table is an ``.npz`` file with the integer columns c1..c5, ``params`` and ``flops`` and at least one column of
accuracies. A search reads costs alone; accuracies score what it found, when it is over.
"""

from __future__ import annotations

import functools
import math
import operator
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgnas.errors import ConfigError, FileError
from pgnas.supernets.nats_cells import EDGES, all_cells, format_cell
from pgnas.supernets.nats_size import MULTIPLE

WIDTHS = ("c1", "c2", "c3", "c4", "c5")
COSTS = ("params", "flops")
TOPOLOGY_COLUMNS = ("arch", "params_c10", "flops_c10")
NEAR_CAP = 0.9
"""Networks of at least this share of the cap are "near" it."""


@dataclass(frozen=True)
class SizeRow:
    """One network of the table.

    Attributes:
        row: Its place in the table.
        widths: c1..c5.
        params: Parameters.
        flops: Multiply-adds, and the classifier's bias.
    """

    row: int
    widths: tuple[int, ...]
    params: int
    flops: int


@dataclass(frozen=True)
class SizeReferences:
    """What the table holds under a cap, in the unit of its accuracies.

    Attributes:
        uniform: The network of one width throughout whose flops are nearest to the cap, below it or above.
        uniform_width: Its width.
        uniform_share: Its flops as a share of the largest network's.
        near_cap: Mean of the networks whose flops lie within 90-100 % of the cap; None if there are none.
        best: The best network.
    """

    uniform: float
    uniform_width: int
    uniform_share: float
    near_cap: float | None
    best: float


class SizeTable:
    """The table in memory.

    Args:
        path: The ``.npz`` file.
        column: Name of the column of accuracies; ``None``: the only one.

    Raises:
        FileError: The file is no such table.
        ConfigError: ``column`` is no column of accuracies, or there are several and none was named.
    """

    def __init__(self, path: Path, *, column: str | None = None) -> None:
        columns = _columns(path, _no_table)
        missing = [name for name in (*WIDTHS, *COSTS) if name not in columns]
        shapes = {values.shape for values in columns.values()}
        if missing or len(shapes) != 1 or len(next(iter(shapes))) != 1 or not next(iter(shapes))[0]:
            value = f"no column {missing[0]}" if missing else f"shapes {sorted(shapes)}"
            raise _no_table(path, value)
        self.column = _accuracy_column(path, columns, column)
        self._accuracy: np.ndarray[Any, Any] = columns[self.column]
        self._widths = np.stack([columns[name] for name in WIDTHS], 1).astype(np.int64)
        self._params, self._flops = (columns[name].astype(np.int64) for name in COSTS)

    @property
    def largest(self) -> int:
        """Flops of the most expensive network."""
        return int(self._flops.max())

    def nearest(self, widths: Sequence[float], cap: float, *, use: float = 0.0, count: int = 1) -> list[SizeRow]:
        """The networks of at most ``cap`` flops whose widths are nearest to these, in the sum of squared differences.

        Without a cap the first is each width rounded to its nearest allowed value. Of equally near ones the most
        expensive comes first. Accuracies are not looked at.

        Args:
            widths: Five widths, not rounded.
            cap: The most flops.
            use: Flops that rounding should not leave unused, at most ``cap`` of which count: networks of which one
                width could grow to the next within these are left out.
            count: At most so many.

        Raises:
            ConfigError: No network is that cheap.
        """
        self._require(cap)
        distance = ((self._widths - np.asarray(widths, dtype=np.float64)) ** 2).sum(1)
        distance[(self._flops > cap) | (self._next_flops <= min(use, cap))] = np.inf
        order = np.lexsort((-self._flops, distance))[: min(count, int(np.isfinite(distance).sum()))]
        return [self._row(int(row)) for row in order]

    def _row(self, row: int) -> SizeRow:
        found = tuple(int(width) for width in self._widths[row])
        return SizeRow(row, found, int(self._params[row]), int(self._flops[row]))

    @functools.cached_property
    def _next_flops(self) -> np.ndarray[Any, Any]:
        """Of each row the least flops with one width a step larger, (rows,); infinite if the table has none."""
        flops = {tuple(row): cost for row, cost in zip(self._widths.tolist(), self._flops.tolist(), strict=True)}
        steps = [tuple(MULTIPLE * (place == other) for other in range(len(WIDTHS))) for place in range(len(WIDTHS))]

        def cheapest(row: Sequence[int]) -> float:
            larger = (tuple(map(operator.add, row, step)) for step in steps)
            return min(float(flops.get(widths, math.inf)) for widths in larger)

        return np.array([cheapest(row) for row in self._widths.tolist()])

    def accuracy(self, row: int) -> float:
        """What the network of a row achieved."""
        return float(self._accuracy[row])

    def references(self, cap: float) -> SizeReferences:
        """What there is to compare with under a cap.

        Raises:
            ConfigError: No network is that cheap.
        """
        self._require(cap)
        allowed = self._flops <= cap
        near = allowed & (self._flops >= NEAR_CAP * cap)
        equal = (self._widths == self._widths[:, :1]).all(1)
        uniform = int(np.where(equal, np.abs(self._flops - cap), np.inf).argmin())
        return SizeReferences(
            float(self._accuracy[uniform]),
            int(self._widths[uniform, 0]),
            float(self._flops[uniform] / self.largest),
            float(self._accuracy[near].mean()) if near.any() else None,
            float(self._accuracy[allowed].max()),
        )

    def _require(self, cap: float) -> None:
        _require_cap(cap, int(self._flops.min()), self.largest)


@dataclass(frozen=True)
class TopologyRow:
    """One cell of the topology table.

    Attributes:
        row: Its place in the table.
        cell: The benchmark's string.
        params: Parameters.
        flops: Multiply-adds, and the classifier's bias.
    """

    row: int
    cell: str
    params: int
    flops: int


@dataclass(frozen=True)
class TopologyReferences:
    """What the topology table holds under a cap, in the unit of its accuracies.

    Attributes:
        mean: All cells under it.
        only_skips: The cell of skip connections alone, where differentiable searches collapse to.
        best: The best cell.
    """

    mean: float
    only_skips: float
    best: float


class TopologyTable:
    """The topology table in memory: the column ``arch`` of cells' strings, costs and accuracies.

    Args:
        path: The ``.npz`` file.
        column: Name of the column of accuracies.

    Raises:
        FileError: The file is no such table.
        ConfigError: ``column`` is no column of accuracies.
    """

    def __init__(self, path: Path, *, column: str) -> None:
        columns = _columns(path, _no_topology_table)
        missing = [name for name in TOPOLOGY_COLUMNS if name not in columns]
        cells: list[str] = [] if missing else [str(text) for text in columns["arch"].tolist()]
        self._rows = {text: row for row, text in enumerate(cells)}
        complete = bool(cells) and all(len(columns[name]) == len(cells) for name in TOPOLOGY_COLUMNS)
        if not complete or not {format_cell(cell) for cell in all_cells()} <= set(self._rows):
            raise _no_topology_table(path, f"no column {missing[0]}" if missing else f"{len(cells)} cells")
        self._accuracy = columns[_accuracy_column(path, columns, column)]
        if self._accuracy.shape != (len(cells),):
            raise _no_topology_table(path, f"{len(cells)} cells and {column} of shape {self._accuracy.shape}")
        self._params, self._flops = (columns[name].astype(np.int64) for name in TOPOLOGY_COLUMNS[1:])

    @property
    def largest(self) -> int:
        """Flops of the most expensive cell's network."""
        return int(self._flops.max())

    @property
    def cheapest(self) -> int:
        """Flops of the cheapest cell's network: one without convolutions."""
        return int(self._flops.min())

    def row(self, cell: str) -> TopologyRow:
        """The row of a cell."""
        row = self._rows[cell]
        return TopologyRow(row, cell, int(self._params[row]), int(self._flops[row]))

    def accuracy(self, row: int) -> float:
        """What the network of a row achieved."""
        return float(self._accuracy[row])

    def references(self, cap: float) -> TopologyReferences:
        """What there is to compare with under a cap on the flops.

        Raises:
            ConfigError: No network is that cheap.
        """
        _require_cap(cap, self.cheapest, self.largest)
        allowed = self._accuracy[self._flops <= cap]
        skips = self._rows[format_cell(dict.fromkeys(EDGES, "skip_connect"))]
        return TopologyReferences(float(allowed.mean()), float(self._accuracy[skips]), float(allowed.max()))


def _require_cap(cap: float, cheapest: int, largest: int) -> None:
    if cap < cheapest:
        raise ConfigError(
            "--caps",
            f"must be at least the cheapest network's {cheapest / largest:.2%} of the largest's flops",
            value=f"{cap / largest:.2%}",
            remedy="raise the cap",
        )


def _columns(path: Path, no_table: Callable[[Path, object], FileError]) -> dict[str, np.ndarray[Any, Any]]:
    """The columns of a table; ``no_table`` makes the error if the file is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        value = "no .npz file" if isinstance(error, AttributeError | TypeError) else error  # a single array
        raise no_table(path, value) from error


def _accuracy_column(path: Path, columns: dict[str, np.ndarray[Any, Any]], column: str | None) -> str:
    known = [name for name, values in columns.items() if np.issubdtype(values.dtype, np.floating)]
    if column is None and len(known) == 1:
        return known[0]
    if column not in known:
        raise ConfigError(
            "--column",
            f"must be one of the columns of accuracies in {path}: {', '.join(known) or 'there is none'}",
            value=column or "none",
            remedy="name one of them",
        )
    return column


def _no_table(path: Path, value: object) -> FileError:
    rule = f"must be a table of NATS-Bench's size space: equally long columns {', '.join((*WIDTHS, *COSTS))}"
    return FileError(str(path), f"{rule} and accuracies", value=value, remedy="give an .npz file of such columns")


def _no_topology_table(path: Path, value: object) -> FileError:
    rule = f"must be a table of NATS-Bench's topology space: columns {', '.join(TOPOLOGY_COLUMNS)}, every cell"
    return FileError(str(path), rule, value=value, remedy="give an .npz file of such columns")
