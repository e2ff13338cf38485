"""The figure of a front: accuracy against each cost, the points that no other beats joined by a line."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pgnas.report.values import Row, cost_name, unit_of

_KINDS = ("macs", "params", "latency")


def undominated(points: Sequence[Row], kind: str) -> list[bool]:
    """Of each point whether no other, not its equal, costs no more and is no worse on validation.

    Args:
        points: Rows with ``val_accuracy`` and the cost.
        kind: The cost, a key of the rows.
    """

    def beats(one: Row, other: Row) -> bool:
        no_worse = one[kind] <= other[kind] and one["val_accuracy"] >= other["val_accuracy"]
        return bool(no_worse and (one[kind] < other[kind] or one["val_accuracy"] > other["val_accuracy"]))

    return [not any(beats(other, point) for other in points) for point in points]


def front_figure(points: Sequence[Row], kind: str) -> str:
    """An SVG file's text: a panel a cost, each with its own points that no other beats.

    Args:
        points: Rows with ``macs``, ``params``, ``val_accuracy``, ``test_accuracy`` and ``cap``; with ``latency`` and
            ``full_latency`` too, latency is drawn as a share of the full network's, measured beside it.
        kind: The capped cost, ``"macs"`` or ``"params"``: the first panel.
    """
    kinds = [kind, *(k for k in _KINDS if k != kind and k in points[0])]
    with matplotlib.rc_context({"svg.hashsalt": "front", "svg.fonttype": "none", "text.parse_math": False}):
        figure = Figure(figsize=(1.2 + 4.2 * len(kinds), 3.8), layout="constrained")
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, shown in zip(panels, kinds, strict=True):
            _draw(axes, points, shown)
        panels[0].set_ylabel("accuracy, %")
        entries = {name: line for axes in panels for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        panels[0].legend(entries.values(), entries.keys(), frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _draw(axes: Axes, points: Sequence[Row], kind: str) -> None:
    values, label = _costs(points, kind)
    order = sorted(range(len(points)), key=values.__getitem__)
    best = undominated(points, kind)
    axes.grid(linewidth=0.5, alpha=0.5)
    for key, style, size, name in (("val_accuracy", "-o", 6, "validation"), ("test_accuracy", "--s", 4, "test")):
        xs, ys = [values[i] for i in order if best[i]], [100 * points[i][key] for i in order if best[i]]
        axes.plot(xs, ys, style, markersize=size, label=name)
    beaten = [i for i in order if not best[i]]
    if beaten:
        ys = [100 * points[i]["val_accuracy"] for i in beaten]
        axes.plot([values[i] for i in beaten], ys, "x", color="gray", label="dominated (validation)")
    for value, point in zip(values, points, strict=True):
        place = (value, 100 * point["val_accuracy"])
        axes.annotate(point["cap"], place, xytext=(4, -10), textcoords="offset points", fontsize=8)
    axes.margins(x=0.1)  # room for the last label
    axes.set_xlabel(label)


def _costs(points: Sequence[Row], kind: str) -> tuple[list[float], str]:
    """The points' costs in the unit of the axis, and its label."""
    if kind == "latency":
        shares = [100 * point["latency"] / point["full_latency"] for point in points]
        return shares, "latency, % of the full network's"
    unit, size = unit_of(max(point[kind] for point in points))
    label = f"{cost_name(kind)}, {unit}" if unit else cost_name(kind)
    return [point[kind] / size for point in points], label
