"""What studies draw, on axes of any figure."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pgnas.stages.studies.measurements import Measurement, rows_of, spread_of
from pgnas.stages.studies.tables import PARAMS, TEST_ERROR, Column

COLOURS = ("#1f5fae", "#b3540b", "#0d7a6b")


def draw_rows(figure: Figure, measurements: Sequence[Measurement], *, head: str) -> None:
    """Test error and parameters by row: means over seeds with standard deviations as bars, and every seed as a dot.

    Args:
        figure: Where.
        measurements: The table.
        head: What the rows are.
    """
    panels = figure.subplots(2, 1, sharex=True)
    for axes, column in zip(panels, (TEST_ERROR, PARAMS), strict=True):
        _draw_column(axes, measurements, column)
    panels[-1].set_xlabel(head)


def _draw_column(axes: Axes, measurements: Sequence[Measurement], column: Column) -> None:
    rows = rows_of(measurements)
    for place, found in enumerate(rows.values()):
        spread = spread_of(found, column.key)
        if spread is None:
            continue
        values = [column.factor * m.values[column.key] for m in found if column.key in m.values]
        axes.scatter([place] * len(values), values, s=12, color=COLOURS[0], alpha=0.5, linewidths=0)
        bar = None if spread.deviation is None else column.factor * spread.deviation
        axes.errorbar(place, column.factor * spread.mean, yerr=bar, fmt="s", color=COLOURS[1], capsize=4)
    axes.set_xticks(range(len(rows)), list(rows))
    axes.set_ylabel(column.title)


def save_png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
