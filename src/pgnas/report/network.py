"""The found network as a drawing: its operations from top to bottom, each with the share of its channels that is kept.

The paper's Figure 2, for any network. Layered layout (Sugiyama) by fast-sugiyama, drawing by matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fast_sugiyama import from_edges
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from pgnas.report.page import zoomable
from pgnas.report.svg import FIRST, INK, MUTED, PAPER, RULE, legible, svg
from pgnas.report.values import count, number, percent, rows, section, share_of, text

_UNIT = 10.0  # the layout's distance between neighbours
_BOX, _STEP = (1.2, 0.44), (1.36, 0.7)  # inches: an operation's size, and from one to the next
_LONGEST = 17  # letters that fit an operation
_MARGIN = 0.15  # inches
_MOST = 2000  # operations; beyond, a drawing helps nobody

Point = tuple[float, float]


@dataclass(frozen=True)
class _Operation:
    name: str
    kind: str
    inputs: tuple[int, ...]
    share: float | None
    shown: str
    hint: str
    dropped: bool


def network_figure(operations: object, summary: object) -> str:
    """The drawing as HTML with controls to zoom; "" without operations.

    Args:
        operations: ``operations.json``.
        summary: ``supernet.json``, for the gates' keep probabilities.
    """
    drawn = _operations(operations, section(summary, "gates"))
    edges = [(source, place) for place, operation in enumerate(drawn) for source in operation.inputs]
    if not edges or len(drawn) > _MOST:
        return ""
    positions, lines = _layout(edges, first_bend=len(drawn))
    width = max(x for x, _ in positions.values()) + _BOX[0] + 2 * _MARGIN
    height = max(y for _, y in positions.values()) + _BOX[1] + 2 * _MARGIN

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-_BOX[0] / 2 - _MARGIN, width - _BOX[0] / 2 - _MARGIN)
        axes.set_ylim(-_BOX[1] / 2 - _MARGIN, height - _BOX[1] / 2 - _MARGIN)
        for line, dropped in _joined(lines, drawn):
            xs, ys = [positions[place][0] for place in line], [positions[place][1] for place in line]
            axes.plot(xs, ys, color=RULE if dropped else MUTED, linewidth=1, zorder=1)
        for place, operation in enumerate(drawn):
            if place in positions:
                _draw_operation(axes, f"operation-{place}", operation, positions[place])

    made = svg("network", draw, width=width, height=height, label=_label(drawn), layout=None)
    for place, operation in enumerate(drawn):
        hint = f'<g class="operation"><title>{text(operation.hint)}</title>'
        made = made.replace(f'<g id="operation-{place}">', hint, 1)
    return zoomable("network-zoom", made, width=96 * width)


def _operations(value: object, gates: Mapping[str, Any]) -> list[_Operation]:
    """The operations of the file, checked: a drawing must not depend on who wrote it."""
    found: list[_Operation] = []
    for place, row in enumerate(rows(section({"file": value}, "file").get("operations"))):
        places = row.get("inputs")
        inputs = [p for p in places if isinstance(p, int)] if isinstance(places, list | tuple) else []
        reads, makes = number(row.get("reads")), number(row.get("makes"))
        kept_reads, kept_makes = number(row.get("kept_reads")), number(row.get("kept_makes"))
        share = share_of(kept_reads, reads) if reads else share_of(kept_makes, makes)
        dropped = kept_makes == 0
        lines = [str(row.get("name")), str(row.get("kind"))]
        if reads:
            lines.append(f"reads {count(kept_reads)} of {count(reads)} channels")
        if makes:
            lines.append(f"makes {count(kept_makes)} of {count(makes)} channels")
        keep = number(section(gates, str(row.get("gate"))).get("keep"))
        if keep is not None:
            lines.append(f"mean keep probability {percent(keep)}")
        if dropped:
            lines.append("dropped")
        shown = f"{count(kept_reads)} of {count(reads)}" if reads else ""
        hint = "\n".join(lines)
        kind = str(row.get("kind"))
        allowed = tuple(p for p in dict.fromkeys(inputs) if 0 <= p < place)
        found.append(_Operation(lines[0], kind, allowed, share, "dropped" if dropped else shown, hint, dropped))
    return found


def _layout(edges: Sequence[tuple[int, int]], *, first_bend: int) -> tuple[dict[int, Point], list[tuple[int, int]]]:
    """Positions in inches, inputs on top, and the edges, the long ones broken where they pass a layer.

    Places from ``first_bend`` on have no operation: they are the bends of long edges.
    """
    number_of = {place: index for index, place in enumerate(sorted({place for edge in edges for place in edge}))}
    place_of = {index: place for place, index in number_of.items()}
    compact = [(number_of[source], number_of[target]) for source, target in edges]

    def place(index: Any) -> int:
        return place_of.get(int(index), first_bend + int(index))

    positions: dict[int, Point] = {}
    lines: list[tuple[int, int]] = []
    right = 0.0
    for points, width, _, parts in from_edges(
        compact, dummy_vertices=True, vertex_spacing=_UNIT, crossing_minimization="barycenter"
    ):
        left = min(x for _, (x, _) in points)
        for index, (x, y) in points:
            positions[place(index)] = (right + (x - left) / _UNIT * _STEP[0], y / _UNIT * _STEP[1])
        lines += [(place(source), place(target)) for source, target in parts or ()]
        right += (width / _UNIT + 1) * _STEP[0]
    low = min(y for _, y in positions.values())
    return {place: (x, y - low) for place, (x, y) in positions.items()}, lines


def _joined(lines: Iterable[tuple[int, int]], drawn: Sequence[_Operation]) -> Iterable[tuple[list[int], bool]]:
    """Edges from operation to operation through their bends, each with whether nothing flows along it any more."""
    after: dict[int, list[int]] = {}
    for source, target in lines:
        after.setdefault(source, []).append(target)
    for source in [place for place in after if place < len(drawn)]:
        for target in after[source]:
            line = [source, target]
            while line[-1] >= len(drawn) and line[-1] in after:
                line.append(after[line[-1]][0])
            ends = [drawn[place].dropped for place in (line[0], line[-1]) if place < len(drawn)]
            yield line, any(ends)


def _draw_operation(axes: Axes, gid: str, operation: _Operation, at: Point) -> None:
    """A box that is filled from the left as far as channels are kept, with what it is and how many."""
    (x, y), (width, height) = at, _BOX
    left, bottom = x - width / 2, y - height / 2
    edge = RULE if operation.dropped else MUTED
    axes.add_patch(Rectangle((left, bottom), width, height, facecolor=PAPER, edgecolor="none", zorder=2))
    share = min(1.0, max(0.0, operation.share or 0.0))
    if share and not operation.dropped:
        bar = Rectangle((left, bottom), width * share, height, facecolor=FIRST, alpha=0.25, linewidth=0, zorder=3)
        axes.add_patch(bar)
    box = FancyBboxPatch(
        (left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.04", facecolor=(0, 0, 0, 0),
        edgecolor=edge, linewidth=1, linestyle="--" if operation.dropped else "-", zorder=4, gid=gid,
    )  # fmt: skip
    axes.add_patch(box)
    colour = MUTED if operation.dropped else INK
    lift = 0.09 if operation.shown else 0
    kind = legible(operation.kind, _LONGEST)
    axes.text(x, y + lift, kind, ha="center", va="center", fontsize=8.5, color=colour, zorder=5)
    if operation.shown:
        axes.text(x, y - lift, operation.shown, ha="center", va="center", fontsize=8, color=colour, zorder=5)


def _label(drawn: Sequence[_Operation]) -> str:
    dropped = sum(operation.dropped for operation in drawn)
    return (
        f"Drawing of the found network: {len(drawn)} operations, {dropped} of them dropped. "
        "What each layer keeps is in the table below."
    )
