"""The figure of candidates' accuracies as histograms, one over another: the paper's Figure 1."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from pgnas.report.svg import FIRST, INK, MUTED, SECOND, THIRD, legible, svg
from pgnas.report.values import number, percent, scored_whole

STYLES = [(FIRST, "-"), (SECOND, "-"), (THIRD, "-"), (MUTED, "--"), (INK, ":")]
_BINS = 30


def accuracies(candidates: object) -> list[float]:
    """The accuracies among the rows of a ``candidates.jsonl``, of candidates that were scored on all images."""
    return [value for row in scored_whole(candidates) if (value := number(row.get("accuracy"))) is not None]


def histogram_figure(accuracies: Mapping[str, Sequence[float]]) -> str:
    """Share of the candidates by validation accuracy, a line a group, such as guided and random ones.

    Args:
        accuracies: Name of a group to its candidates' accuracies in [0, 1]; groups without any are left out.

    Returns:
        The figure; "" without a candidate.
    """
    groups = {name: values for name, values in accuracies.items() if len(values)}
    if not groups:
        return ""

    def draw(figure: Figure) -> None:
        draw_histogram(figure, groups)

    label = "Accuracy of candidates without fine-tuning: " + "; ".join(
        f"{name}: {len(values)}, from {percent(min(values))} to {percent(max(values))}, "
        f"mean {percent(statistics.fmean(values))}"
        for name, values in groups.items()
    )
    return svg("histogram", draw, width=5, height=3.4 + 0.2 * max(0, len(groups) - 2), label=label)


def draw_histogram(
    figure: Figure, accuracies: Mapping[str, Sequence[float]], *, styles: Sequence[tuple[str, str]] = STYLES
) -> None:
    """Draw on a figure what :func:`histogram_figure` shows.

    Args:
        figure: Where.
        accuracies: Name of a group to its candidates' accuracies in [0, 1], one or more.
        styles: Colour and line of each group in turn.
    """
    groups = {name: 100 * np.asarray(values, dtype=float) for name, values in accuracies.items()}
    low, high = (edge(edge(values) for values in groups.values()) for edge in (min, max))
    edges = np.linspace(low, high, _BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    axes = figure.add_subplot()
    for index, (name, values) in enumerate(groups.items()):
        colour, line = styles[index % len(styles)]
        shares = 100 * np.histogram(values, edges)[0] / len(values)
        axes.stairs(shares, edges, color=colour, fill=True, alpha=0.2)
        label = f"{legible(name, 28)} ({len(values)})"
        axes.stairs(shares, edges, color=colour, linestyle=line, linewidth=1.5, label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("validation accuracy, %")
    axes.set_ylabel("candidates, %")
    figure.legend(loc="outside upper left", ncols=1 if len(groups) > 2 else 2, handlelength=1.6)
