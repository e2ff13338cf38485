"""The figure of the training, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pgnas.report.svg import FIRST, INK, MUTED, SECOND, THIRD, legible, svg
from pgnas.report.values import Row, number, rows

_LONGEST = 24  # letters in a legend
_MAIN_STAGES = ("search", "train")


def curves_figure(history: Sequence[Row]) -> str:
    """Loss, accuracy, expected cost and multiplier by epoch, a panel each that has values; "" without any."""
    stages = list(dict.fromkeys(str(row.get("stage")) for row in rows(history)))
    panels = [(title, lines) for title, lines in _panels(rows(history), stages) if lines]
    if not panels:
        return ""

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        starts = _starts(rows(history))
        for axes, (title, lines) in zip(grid, panels, strict=True):
            for name, xs, ys, style in lines:
                marker = "." if len(xs) == 1 else None
                axes.plot(xs, ys, label=legible(name, _LONGEST), linewidth=1.5, marker=marker, **style)
            for start in starts:
                axes.axvline(start, color=MUTED, linewidth=0.8, linestyle=":")
            axes.set_title(title, loc="left", fontsize=11)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            if len(lines) > 1:
                axes.legend(loc="best", handlelength=1.6)
        grid[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        grid[-1].set_xlabel("epoch")

    label = f"By epoch, in panels: {', '.join(title for title, _ in panels)}; stages: {', '.join(stages)}"
    return svg("curves", draw, width=5, height=0.6 + 1.5 * len(panels), label=label)


Line = tuple[str, list[float], list[float], Mapping[str, Any]]


def _panels(history: Sequence[Row], stages: Sequence[str]) -> list[tuple[str, list[Line]]]:
    def by_stage(key: str, factor: float = 1.0) -> list[Line]:
        lines = [_line(stage, [r for r in history if str(r.get("stage")) == stage], key, factor) for stage in stages]
        styles = _styles(stages)
        return [(name, xs, ys, styles[name]) for name, xs, ys in lines if xs]

    def of_keys(names: Mapping[str, tuple[str, str]], factor: float = 1.0) -> list[Line]:
        lines = [(_line(name, history, key, factor), style) for key, (name, style) in names.items()]
        colours = [FIRST, SECOND, THIRD, MUTED, INK]
        kept = [(line, style) for line, style in lines if line[1]]
        return [
            (*line, {"color": colours[index % len(colours)], "linestyle": style})
            for index, (line, style) in enumerate(kept)
        ]

    costs = {
        "cost": ("expected cost", "-"),
        "target": ("its target", "--"),
        "cost_params": ("expected parameters", "-"),
        "target_params": ("their target", "--"),
        "undecided": ("undecided gates", ":"),
    }
    multipliers = {"lambda": ("of the first cap", "-"), "lambda_params": ("of the cap on parameters", "--")}
    return [
        ("training loss", by_stage("loss")),
        ("validation accuracy, %", by_stage("accuracy", 100)),
        ("share of the full network, %", of_keys(costs, 100)),
        ("multiplier λ", of_keys(multipliers)),
    ]


def _line(name: str, history: Sequence[Row], key: str, factor: float) -> tuple[str, list[float], list[float]]:
    found = [(number(row.get("epoch")), number(row.get(key))) for row in history]
    known = [(x, y * factor) for x, y in found if x is not None and y is not None]
    return name, [x for x, _ in known], [y for _, y in known]


def _styles(stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The run itself in solid lines; baselines, whose epochs are others, dashed."""
    styles: dict[str, dict[str, Any]] = {}
    solid, dashed = [FIRST, SECOND], [THIRD, MUTED, INK]
    for stage in stages:
        of_run = stage in _MAIN_STAGES
        colours = solid if of_run else dashed
        used = sum((name in _MAIN_STAGES) == of_run for name in styles)
        styles[stage] = {"color": colours[used % len(colours)], "linestyle": "-" if of_run else "--"}
    return styles


def _starts(history: Sequence[Row]) -> list[float]:
    """Where one stage of the run gives way to the next, between two epochs."""
    firsts: dict[str, float] = {}
    for row in history:
        epoch = number(row.get("epoch"))
        if row.get("stage") in _MAIN_STAGES and epoch is not None:
            firsts.setdefault(str(row["stage"]), epoch)
    return [epoch - 0.5 for epoch in list(firsts.values())[1:]]
