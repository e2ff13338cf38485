"""What studies draw, on axes of any figure."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pgnas.stages.studies.measurements import Measurement, rows_of, spread_of
from pgnas.stages.studies.tables import TEST_ERROR, Column

COLOURS = ("#1f5fae", "#b3540b", "#0d7a6b")
BINS = 30


def draw_histogram(axes: Axes, groups: Mapping[str, Sequence[float]], *, colours: Sequence[str] = COLOURS) -> None:
    """Figure 1: how many candidates of each group have which accuracy, with each group's mean as a dashed line.

    Args:
        axes: Where.
        groups: Accuracies in [0, 1] by the name of their group; empty groups are left out.
        colours: One a group.
    """
    shown = {name: [100 * value for value in values] for name, values in groups.items() if values}
    low = min((min(values) for values in shown.values()), default=0.0)
    high = max((max(values) for values in shown.values()), default=100.0)
    width = (high - low) / BINS or 1.0  # all the same
    edges = [low + width * place for place in range(BINS + 1)]
    for (name, values), colour in zip(shown.items(), colours, strict=False):
        mean = statistics.fmean(values)
        axes.hist(values, bins=edges, color=colour, alpha=0.6, label=f"{name}: {len(values)}, mean {mean:.1f} %")
        axes.axvline(mean, color=colour, linestyle="--", linewidth=1.2)
    axes.set_xlabel("validation accuracy without fine-tuning, %")
    axes.set_ylabel("candidates")
    if shown:
        axes.legend(loc="best", frameon=False)


def draw_rows(axes: Axes, measurements: Sequence[Measurement], *, head: str, column: Column = TEST_ERROR) -> None:
    """A column by row: the mean over seeds with its standard deviation as a bar, and every seed as a dot.

    Args:
        axes: Where.
        measurements: The table.
        head: What the rows are.
        column: Which column.
    """
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
    axes.set_xlabel(head)
    axes.set_ylabel(column.title)


def save_png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
