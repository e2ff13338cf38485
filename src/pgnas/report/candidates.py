"""The figure of the candidates: accuracy against cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pgnas.report.svg import FIRST, INK, MUTED, SECOND, THIRD, legible, svg
from pgnas.report.values import Row, cost_name, number, percent, scored_whole, section, short_count, unit_of


class Point(NamedTuple):
    """Something at its cost and accuracy in percent."""

    cost: float
    accuracy: float
    row: Row


_TRAINED = [("s", MUTED), ("^", INK), ("v", THIRD), ("P", FIRST)]


def candidates_figure(candidates: Sequence[Row], result: Row) -> str:
    """Every candidate's validation accuracy against its cost, the front of the best trade-offs, winner and cap.

    Where networks were trained, a second panel shows the candidates beside them: the found network, the full network
    and other baselines. "" without candidates.
    """
    cap, found = section(result, "cap"), section(result, "found")
    kind = "params" if number(cap.get("macs")) is None and number(cap.get("params")) is not None else "macs"
    points = [
        Point(x, 100 * y, row)
        for row in scored_whole(candidates)
        if (x := number(row.get(kind))) is not None and (y := number(row.get("accuracy"))) is not None
    ]
    if not points:
        return ""
    winner, limit = _winner(points, found), number(cap.get(kind))
    trained = _trained(result, kind)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(2 if trained else 1, 1, squeeze=False)[:, 0]
        _draw_candidates(panels[0], points, winner)
        if limit is not None:
            panels[0].axvline(limit, color=SECOND, linestyle="--", linewidth=1.2, label="cap")
        _readable(panels[0], [*(p.cost for p in points), *([limit] if limit is not None else [])])
        if trained:
            _draw_trained(panels[1], points, winner, trained)
        for axes in panels:
            _name_axes(axes, kind, [point.cost for point in points])
            handles, names = axes.get_legend_handles_labels()
            above = {"loc": "lower left", "bbox_to_anchor": (-0.12, 1.0)}
            axes.legend(handles, names, **above, ncols=3, handletextpad=0.4, handlelength=1.2, columnspacing=1)

    low, high = min(p.accuracy for p in points), max(p.accuracy for p in points)
    label = (
        f"{len(points)} candidates with {short_count(min(p.cost for p in points))} to "
        f"{short_count(max(p.cost for p in points))} {cost_name(kind)}; "
        f"validation accuracy from {percent(low / 100)} to {percent(high / 100)}"
    )
    label += "".join(
        f"; {name}: {percent(accuracy / 100)} at {short_count(cost)}" for name, (cost, accuracy, _) in trained.items()
    )
    return svg("candidates", draw, width=5, height=6.4 if trained else 3.8, label=label)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in one respect without losing in the other, by cost."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def _draw_candidates(axes: Axes, points: Sequence[Point], winner: Point | None) -> None:
    others = [p for p in points if p is not winner and not p.row.get("is_mode")]
    modes = [p for p in points if p is not winner and p.row.get("is_mode")]
    for group, marker, colour, name in ((others, "o", FIRST, "candidate"), (modes, "D", THIRD, "posterior mode")):
        if group:
            xs, ys = [p.cost for p in group], [p.accuracy for p in group]
            axes.scatter(xs, ys, s=22, marker=marker, c=colour, alpha=0.75, linewidths=0, label=name)
    best = front(points)
    if len(best) > 1:
        xs, ys = [p.cost for p in best], [p.accuracy for p in best]
        axes.step(xs, ys, where="post", color=FIRST, linewidth=1.2, label="front", zorder=1)
    if winner is not None:
        axes.scatter(winner.cost, winner.accuracy, s=130, marker="*", c=SECOND, linewidths=0, label="chosen", zorder=3)


def _draw_trained(axes: Axes, points: Sequence[Point], winner: Point | None, trained: dict[str, Point]) -> None:
    xs, ys = [p.cost for p in points], [p.accuracy for p in points]
    axes.scatter(xs, ys, s=12, c=FIRST, alpha=0.5, linewidths=0, label="candidates")
    found = trained.get("found network")
    if winner is not None and found is not None:
        arrow = {"arrowstyle": "->", "color": SECOND, "shrinkA": 0, "shrinkB": 6}
        axes.annotate("", xy=found[:2], xytext=winner[:2], arrowprops=arrow)
    others = (style for style in _TRAINED)
    for name, point in trained.items():
        marker, colour = ("*", SECOND) if point is found else next(others, _TRAINED[-1])
        size = 130 if point is found else 45
        axes.scatter(*point[:2], s=size, marker=marker, c=colour, linewidths=0, label=legible(name, 24), zorder=3)


def _trained(result: Row, kind: str) -> dict[str, Point]:
    """The networks that were trained to the end, by name, with their accuracy on validation images."""
    entries = {"found network": section(result, "found")}
    for name in section(result, "baselines"):
        baseline = section(section(result, "baselines"), name)
        entries["full network" if name == "full" else f"baseline {name}"] = baseline
    found = {
        name: (number(row.get(kind)), number(row.get("val_accuracy")), row) for name, row in entries.items() if row
    }
    return {name: Point(x, 100 * y, row) for name, (x, y, row) in found.items() if x is not None and y is not None}


def _winner(points: Sequence[Point], found: Row) -> Point | None:
    """The found network's point: that of its digest or, if the result has none, the best of its size."""
    digest = found.get("digest")
    same = [p for p in points if digest is not None and p.row.get("digest") == digest]
    if not same and found.get("macs") is not None:
        same = [p for p in points if all(p.row.get(kind) == found.get(kind) for kind in ("macs", "params"))]
    return max(same, key=lambda p: p.accuracy, default=None)


def _readable(axes: Axes, values: Sequence[float]) -> None:
    """Room around the values, and some when they are all the same."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_xlim(low - margin, high + margin)


def _name_axes(axes: Axes, kind: str, costs: Sequence[float]) -> None:
    unit, size = unit_of(max(costs))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / size:.6g}")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(f"{cost_name(kind)}, {unit}" if unit else cost_name(kind))
    axes.set_ylabel("validation accuracy, %")
