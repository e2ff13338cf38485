"""The figure of a front: accuracy against cost, the points that no other beats joined by a line."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from pgnas.report.values import Row, cost_name, unit_of


def front_figure(points: Sequence[Row], kind: str) -> str:
    """An SVG file's text.

    Args:
        points: Rows with ``macs``, ``params``, ``val_accuracy``, ``test_accuracy``, ``cap`` and ``dominated``.
        kind: The cost on the horizontal axis, ``"macs"`` or ``"params"``.
    """
    unit, size = unit_of(max(point[kind] for point in points))
    best = sorted((point for point in points if not point["dominated"]), key=lambda point: point[kind])
    with matplotlib.rc_context({"svg.hashsalt": "front", "svg.fonttype": "none", "text.parse_math": False}):
        figure = Figure(figsize=(5.5, 3.8), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(linewidth=0.5, alpha=0.5)
        xs = [point[kind] / size for point in best]
        axes.plot(xs, [100 * point["val_accuracy"] for point in best], "-o", label="validation")
        axes.plot(xs, [100 * point["test_accuracy"] for point in best], "--s", markersize=4, label="test")
        beaten = [point for point in points if point["dominated"]]
        if beaten:
            ys = [100 * point["val_accuracy"] for point in beaten]
            axes.plot([point[kind] / size for point in beaten], ys, "x", color="gray", label="dominated (validation)")
        for point in points:
            place = (point[kind] / size, 100 * point["val_accuracy"])
            axes.annotate(point["cap"], place, xytext=(4, -10), textcoords="offset points", fontsize=8)
        axes.set_xlabel(f"{cost_name(kind)}, {unit}" if unit else cost_name(kind))
        axes.set_ylabel("accuracy, %")
        axes.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
