"""The reliability diagram: how often predictions of a confidence are right."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pgnas.report.sureness import NETWORKS
from pgnas.report.svg import FIRST, INK, MUTED, SECOND, THIRD, legible, svg
from pgnas.report.values import number, percent, rows, section

_STYLES = [(FIRST, "o"), (SECOND, "s"), (THIRD, "D"), (INK, "^"), (MUTED, "v")]

Bin = tuple[float, float, float]
"""Mean confidence, accuracy, number of images."""


def reliability_figure(reliability: object) -> str:
    """Accuracy against confidence by bin, with the number of images below; "" without bins.

    Args:
        reliability: ``reliability.json``: a network's name to ``{"bins": [{confidence, accuracy, count}, ...]}``.
    """
    networks = {
        NETWORKS.get(str(name), str(name)): bins
        for name, value in section({"all": reliability}, "all").items()
        if (bins := _bins(section({"one": value}, "one").get("bins")))
    }
    if not networks:
        return ""

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 100], [0, 100], color=MUTED, linewidth=1.2, linestyle="--", label="as sure as right", zorder=1)
        for index, (name, bins) in enumerate(networks.items()):
            colour, marker = _STYLES[index % len(_STYLES)]
            _draw(above, below, legible(name, 28), bins, colour, marker)
        above.set_ylabel("right, %")
        above.set_ylim(-4, 104)
        below.set_yscale("symlog", linthresh=1)
        below.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        below.set_ylim(bottom=0)
        below.set_ylabel("images")
        below.set_xlabel("confidence, %")
        below.set_xlim(-2, 102)
        figure.legend(loc="outside upper left", ncols=2, handlelength=1.6, columnspacing=1)

    label = "Reliability: " + "; ".join(
        f"{name}: on average {percent(sum(c * n for c, _, n in bins) / sum(n for *_, n in bins))} confident, "
        f"{percent(sum(a * n for _, a, n in bins) / sum(n for *_, n in bins))} right"
        for name, bins in networks.items()
    )
    return svg("reliability", draw, width=5, height=4.2, label=label)


def _bins(values: object) -> list[Bin]:
    found = [tuple(number(row.get(key)) for key in ("confidence", "accuracy", "count")) for row in rows(values)]
    return [(c, a, n) for c, a, n in found if c is not None and a is not None and n is not None and n > 0]


def _draw(above: Axes, below: Axes, name: str, bins: list[Bin], colour: str, marker: str) -> None:
    confidence, accuracy, images = ([100 * c for c, *_ in bins], [100 * a for _, a, _ in bins], [n for *_, n in bins])
    style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.3}
    above.plot(confidence, accuracy, label=name, **style)
    below.plot(confidence, images, **style)
