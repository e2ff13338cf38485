"""Figures as inline SVG, in colours that the page's style decides."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, Literal

import matplotlib
from matplotlib.figure import Figure

from pgnas.report.values import text

# Colours that nothing else has: they are replaced by what follows light and dark.
COLOURS = {
    "#010203": "currentColor",
    "#010204": "var(--rule)",
    "#010205": "var(--first)",
    "#010206": "var(--second)",
    "#010207": "var(--third)",
    "#010208": "var(--paper)",
    "#010209": "var(--muted)",
}
INK, RULE, FIRST, SECOND, THIRD, PAPER, MUTED = COLOURS
_SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # "$" in a name is a "$"
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


def legible(name: str, longest: int) -> str:
    """A name of at most ``longest`` letters, in characters that every font has, as matplotlib's legends show it."""
    short = name if len(name) <= longest else name[: longest - 1] + "…"
    hidden = " " if short.startswith("_") else ""  # matplotlib takes such names for its own
    return hidden + "".join(c if c.isprintable() and (c.isascii() or c in "…λ") else "?" for c in short)


def svg(
    name: str,
    draw: Callable[[Figure], None],
    *,
    width: float,
    height: float,
    label: str,
    layout: Literal["constrained"] | None = "constrained",
) -> str:
    """What ``draw`` draws, as an SVG element for the page.

    Args:
        name: Makes the ids in it its own, yet the same in each report of the same run.
        draw: Draws on a figure.
        width: In inches, at 11 point text.
        height: Likewise.
        label: What it shows, for those who cannot see it.
        layout: matplotlib's way to place axes; None: ``draw`` does.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout=layout)
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sid="[a-zA-Z.]+\w*_\d+"', "", svg)  # two figures on a page would share them
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg, count=2)  # HTML knows them
    svg = re.sub(r'\s(width|height)="[^"]*pt"', "", svg, count=2)
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{text(label)}"', 1).strip()
