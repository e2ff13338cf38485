"""The figures of a report as inline SVG, in colours that the page's style decides."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pgnas.stages.report_values import Row, cost_name, number, percent, rows, section, short_count, text, unit_of

# Colours that nothing else has: they are replaced by what follows light and dark.
_COLOURS = {
    "#010203": "currentColor",
    "#010204": "var(--rule)",
    "#010205": "var(--first)",
    "#010206": "var(--second)",
    "#010207": "var(--third)",
    "#010208": "var(--paper)",
    "#010209": "var(--muted)",
}
_INK, _RULE, _FIRST, _SECOND, _THIRD, _PAPER, _MUTED = _COLOURS
_SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # "$" in a name is a "$"
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}
_LONGEST = 24  # letters in a legend
_MAIN_STAGES = ("search", "train")


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
        for group, marker, colour, name in ((others, "o", _FIRST, "candidate"), (modes, "D", _THIRD, "posterior mode")):
            if group:
                xs, ys = [p[0] for p in group], [p[1] for p in group]
                axes.scatter(xs, ys, s=22, marker=marker, c=colour, alpha=0.75, linewidths=0, label=name)
        if winner is not None:
            axes.scatter(winner[0], winner[1], s=130, marker="*", c=_SECOND, linewidths=0, label="chosen", zorder=3)
        if limit is not None:
            axes.axvline(limit, color=_SECOND, linestyle="--", linewidth=1.2, label="cap")
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
    return _svg("candidates", draw, width=5, height=3.8, label=label)


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
                axes.plot(xs, ys, label=_legible(name), linewidth=1.5, marker=marker, **style)
            for start in starts:
                axes.axvline(start, color=_MUTED, linewidth=0.8, linestyle=":")
            axes.set_title(title, loc="left", fontsize=11)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            if len(lines) > 1:
                axes.legend(loc="best", handlelength=1.6)
        grid[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        grid[-1].set_xlabel("epoch")

    label = f"By epoch, in panels: {', '.join(title for title, _ in panels)}; stages: {', '.join(stages)}"
    return _svg("curves", draw, width=5, height=0.6 + 1.5 * len(panels), label=label)


Line = tuple[str, list[float], list[float], Mapping[str, Any]]


def _panels(history: Sequence[Row], stages: Sequence[str]) -> list[tuple[str, list[Line]]]:
    def by_stage(key: str, factor: float = 1.0) -> list[Line]:
        lines = [_line(stage, [r for r in history if str(r.get("stage")) == stage], key, factor) for stage in stages]
        styles = _styles(stages)
        return [(name, xs, ys, styles[name]) for name, xs, ys in lines if xs]

    def of_keys(names: Mapping[str, tuple[str, str]], factor: float = 1.0) -> list[Line]:
        lines = [(_line(name, history, key, factor), style) for key, (name, style) in names.items()]
        colours = [_FIRST, _SECOND, _THIRD, _MUTED, _INK]
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
    solid, dashed = [_FIRST, _SECOND], [_THIRD, _MUTED, _INK]
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


def _legible(name: str) -> str:
    """A name that fits a legend, in characters that every font has."""
    short = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
    return "".join(c if c.isprintable() and (c.isascii() or c in "…λ") else "?" for c in short)


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


def _svg(name: str, draw: Callable[[Figure], None], *, width: float, height: float, label: str) -> str:
    """What ``draw`` draws, as an SVG element for the page.

    Args:
        name: Makes the ids in it its own, yet the same in each report of the same run.
        draw: Draws on a figure.
        width: In inches, at 11 point text.
        height: Likewise.
        label: What it shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sid="[a-zA-Z.]+\w*_\d+"', "", svg)  # two figures on a page would share them
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg, count=2)  # HTML knows them
    svg = re.sub(r'\s(width|height)="[^"]*pt"', "", svg, count=2)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{text(label)}"', 1).strip()
