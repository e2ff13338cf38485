"""The figure of the candidates: accuracy against cost."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pgnas.report.svg import FIRST, SECOND, THIRD, svg
from pgnas.report.values import Row, cost_name, number, percent, rows, section, short_count, unit_of


def candidates_figure(candidates: Sequence[Row], result: Row) -> str:
    """Every candidate's validation accuracy against its cost, the winner and the cap marked; "" without candidates."""
    cap, found = section(result, "cap"), section(result, "found")
    kind = "params" if number(cap.get("macs")) is None and number(cap.get("params")) is not None else "macs"
    seen = max((number(row.get("count")) or 0 for row in rows(candidates)), default=0)
    points = [
        (x, 100 * y, row)
        for row in rows(candidates)
        if (number(row.get("count")) or 0) == seen  # others left a race early, scored on fewer images
        and (x := number(row.get(kind))) is not None
        and (y := number(row.get("accuracy"))) is not None
    ]
    if not points:
        return ""
    winner = _winner(points, found)
    limit = number(cap.get(kind))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        others = [p for p in points if p is not winner and not p[2].get("is_mode")]
        modes = [p for p in points if p is not winner and p[2].get("is_mode")]
        for group, marker, colour, name in ((others, "o", FIRST, "candidate"), (modes, "D", THIRD, "posterior mode")):
            if group:
                xs, ys = [p[0] for p in group], [p[1] for p in group]
                axes.scatter(xs, ys, s=22, marker=marker, c=colour, alpha=0.75, linewidths=0, label=name)
        if winner is not None:
            axes.scatter(winner[0], winner[1], s=130, marker="*", c=SECOND, linewidths=0, label="chosen", zorder=3)
        if limit is not None:
            axes.axvline(limit, color=SECOND, linestyle="--", linewidth=1.2, label="cap")
        _readable(axes, [*(p[0] for p in points), *([limit] if limit is not None else [])])
        unit, size = unit_of(max(p[0] for p in points))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / size:.6g}")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(f"{cost_name(kind)}, {unit}" if unit else cost_name(kind))
        axes.set_ylabel("validation accuracy, %")
        figure.legend(loc="outside upper left", ncols=4, handletextpad=0.2, columnspacing=1, handlelength=1.5)

    low, high = min(p[1] for p in points), max(p[1] for p in points)
    label = (
        f"{len(points)} candidates with {short_count(min(p[0] for p in points))} to "
        f"{short_count(max(p[0] for p in points))} {cost_name(kind)}; "
        f"validation accuracy from {percent(low / 100)} to {percent(high / 100)}"
    )
    return svg("candidates", draw, width=5, height=3.8, label=label)


def _winner(points: Sequence[tuple[float, float, Row]], found: Row) -> tuple[float, float, Row] | None:
    """The found network's point: that of its digest or, if the result has none, the best of its size."""
    digest = found.get("digest")
    same = [p for p in points if digest is not None and p[2].get("digest") == digest]
    if not same and found.get("macs") is not None:
        same = [p for p in points if all(p[2].get(kind) == found.get(kind) for kind in ("macs", "params"))]
    return max(same, key=lambda p: p[1], default=None)


def _readable(axes: Axes, values: Sequence[float]) -> None:
    """Room around the values, and some when they are all the same."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_xlim(low - margin, high + margin)
