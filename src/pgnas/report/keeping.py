"""The figure of the keep probabilities: a row a layer, a column an epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pgnas.report.svg import legible, svg
from pgnas.report.values import Row, number, rows, section

_COLOUR = (0.22, 0.5, 0.78)  # seen on white and on black; opacity is the probability
_LONGEST = 26  # letters of a layer's name
_MOST_LABELS = 150


def keep_figure(history: Sequence[Row]) -> str:
    """Each gate's mean keep probability after every epoch of the search; "" without any."""
    measured = [row for row in rows(history) if section(row, "keep_by_gate")]
    epochs = [number(row.get("epoch")) for row in measured]
    gates = list(section(measured[-1], "keep_by_gate")) if measured else []
    known = [(epoch, row) for epoch, row in zip(epochs, measured, strict=True) if epoch is not None]
    if not gates or not known:
        return ""
    table = [[number(section(row, "keep_by_gate").get(gate)) for _, row in known] for gate in gates]
    keep = np.clip(np.array([[np.nan if p is None else p for p in line] for line in table], dtype=float), 0, 1)
    first, last = known[0][0], known[-1][0]

    def draw(figure: Figure) -> None:
        axes, scale = figure.subplots(2, 1, height_ratios=(len(gates), 1))
        image = np.zeros((*keep.shape, 4))
        image[..., :3], image[..., 3] = _COLOUR, np.nan_to_num(keep)
        extent = (first - 0.5, last + 0.5, len(gates) - 0.5, -0.5)
        axes.imshow(image, aspect="auto", interpolation="none", extent=extent)
        axes.grid(visible=False)
        step = -(-len(gates) // _MOST_LABELS)
        labels = [_short(gate) for gate in gates[::step]]
        axes.set_yticks(range(0, len(gates), step), labels, fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("epoch")
        strip = np.zeros((1, 101, 4))
        strip[..., :3], strip[..., 3] = _COLOUR, np.linspace(0, 1, 101)
        scale.imshow(strip, aspect="auto", interpolation="none", extent=(0, 1, 0, 1))
        scale.set_yticks([])
        scale.grid(visible=False)
        scale.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        scale.set_xlabel("mean keep probability")

    label = (
        f"Mean keep probability of {len(gates)} gates over {len(known)} epochs; at the end from "
        f"{np.nanmin(keep[:, -1]):.2f} to {np.nanmax(keep[:, -1]):.2f}"
        if not np.isnan(keep[:, -1]).all()
        else f"Mean keep probability of {len(gates)} gates"
    )
    return svg("keep", draw, width=5, height=1.5 + 0.19 * min(len(gates), 400), label=label)


def _short(name: str) -> str:
    """The end of a long name says more than its beginning."""
    return legible(name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :], _LONGEST)
