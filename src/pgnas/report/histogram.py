"""Figure 1 of the paper: how many candidates, guided by the posterior and random, have which accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pgnas.report.svg import FIRST, SECOND, svg
from pgnas.report.values import percent

GUIDED, RANDOM = "guided by the posterior", "random"
BINS = 30


def histogram_figure(guided: Sequence[float], random: Sequence[float]) -> str:
    """Accuracies in [0, 1] of guided and of random candidates as a figure for the page; "" without both."""
    groups = {GUIDED: guided, RANDOM: random}
    if not all(groups.values()):
        return ""
    means = (
        f"{len(values)} {name}, {percent(statistics.fmean(values))} in the mean" for name, values in groups.items()
    )
    return svg(
        "histogram",
        lambda figure: draw_histogram(figure.add_subplot(), groups, colours=(FIRST, SECOND)),
        width=5,
        height=3.8,
        label=f"Validation accuracy of candidates that were not fine-tuned: {'; '.join(means)}",
    )


def draw_histogram(axes: Axes, groups: Mapping[str, Sequence[float]], *, colours: Sequence[str]) -> None:
    """A histogram a group, with the group's mean as a dashed line.

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
    if shown and isinstance(axes.figure, Figure):
        axes.figure.legend(loc="outside upper left", frameon=False)
