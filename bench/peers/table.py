"""Tables and plots of the results: mean and spread over seeds, and PGNAS's paired difference to each peer."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.peers.cells import Cell
from bench.peers.methods import METHODS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pgnas.stages.studies import measurements

Result = dict[str, Any]
OURS, REFERENCE = "pgnas", "full"


class Spread(measurements.Spread):
    """Numbers over seeds, and which side of 0 they are on."""

    @property
    def is_ahead(self) -> bool:
        """Whether the mean is above 0 by more than two standard errors."""
        return self.error is not None and self.mean > 2 * self.error

    @property
    def is_behind(self) -> bool:
        """Whether it is below 0 by more than two."""
        return self.error is not None and -self.mean > 2 * self.error


def accuracy(result: Result, column: str) -> float | None:
    """Test accuracy in percent: ``before``, ``before_recalibrated``, ``after``, or after a number of extra epochs."""
    scores = result.get(column) or result.get("extra", {}).get(column)
    return None if scores is None else 100 * scores["test"]


def paired(ours: Iterable[Result], theirs: Iterable[Result], column: str) -> Spread | None:
    """Our accuracy minus theirs over the seeds that both have; None if there is none."""
    by_seed = [{r["cell"]["seed"]: accuracy(r, column) for r in rows} for rows in (ours, theirs)]
    differences = [
        by_seed[0][seed] - by_seed[1][seed]
        for seed in by_seed[0]
        if None not in (by_seed[0][seed], by_seed[1].get(seed))
    ]
    return Spread.of(differences) if differences else None


def grouped(results: Sequence[Result]) -> dict[str, dict[str, list[Result]]]:
    """Results by table, and in it by method in the order of the methods."""
    tables: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        cell = Cell.of(result)
        tables.setdefault(cell.table, {}).setdefault(cell.method, []).append(result)
    order = list(METHODS)
    return {
        name: {method: tables[name][method] for method in sorted(tables[name], key=order.index)}
        for name in sorted(tables)
    }


def columns(rows: dict[str, list[Result]]) -> dict[str, str]:
    """Columns of accuracy to their titles."""
    titles = {"before": "before fine-tuning", "before_recalibrated": "BatchNorm recalibrated"}
    results = list(itertools.chain.from_iterable(rows.values()))
    if any("after" in result for result in results):
        return titles | {"after": "at equal compute"}
    extra = sorted({int(epochs) for result in results for epochs in result.get("extra", {})})
    return titles | {str(epochs): f"{epochs} extra epoch{'s' if epochs > 1 else ''}" for epochs in extra}


def markdown(rows: dict[str, list[Result]]) -> str:
    """The table of one group of cells, and the differences."""
    shown = columns(rows)
    titles = [
        "method",
        "seeds",
        *shown.values(),
        "MACs",
        "parameters",
        "cap met",
        "compute: finding",
        "in all",
        "minutes",
    ]
    lines = [_line(titles), _line(["---"] * len(titles))]
    lines += [_line(_row(METHODS[method].title, results, shown)) for method, results in rows.items()]
    if OURS not in rows or len(rows) == 1:
        return "\n".join(lines)
    lines += [
        "",
        "PGNAS - peer, points of test accuracy (standard error; ahead or behind: more than two of these):",
        "",
    ]
    compared = {column: title for column, title in shown.items() if column != "before"}
    lines += [_line(["peer", "seeds", *compared.values()]), _line(["---"] * (2 + len(compared)))]
    for method, results in rows.items():
        if method != OURS:
            found = [paired(rows[OURS], results, column) for column in compared]
            seeds = max((spread.count for spread in found if spread), default=0)
            lines.append(_line([METHODS[method].title, str(seeds), *map(_difference, found)]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(title: str, results: list[Result], shown: dict[str, str]) -> list[str]:
    accuracies = [[a for r in results if (a := accuracy(r, column)) is not None] for column in shown]
    return [
        title,
        str(len(results)),
        *(_spread(Spread.of(values), 2) if values else "–" for values in accuracies),
        *(
            _spread(Spread.of([100 * r["found"][kind] / r["full"][kind] for r in results]), 1) + " %"
            for kind in ("macs", "params")
        ),
        _caps_met(results),
        *(_spread(Spread.of([r["compute"][part] for r in results]), 2) for part in ("finding", "total")),
        _spread(Spread.of([r["seconds"]["total"] / 60 for r in results]), 1),
    ]


def _caps_met(results: list[Result]) -> str:
    """The full network has no cap to meet."""
    capped = [r for r in results if r["cell"]["method"] != REFERENCE]
    return f"{sum(r['cap_met'] for r in capped)} of {len(capped)}" if capped else "–"


def _spread(spread: Spread, digits: int) -> str:
    mean = f"{spread.mean:.{digits}f}"
    return mean if spread.deviation is None else f"{mean} ± {spread.deviation:.{digits}f}"


def _difference(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    if spread.error is None:
        return f"{spread.mean:+.2f}"
    verdict = " ahead" if spread.is_ahead else " behind" if spread.is_behind else ""
    return f"{spread.mean:+.2f} ({spread.error:.2f}){verdict}"


def plot(rows: dict[str, list[Result]], title: str, path: Path) -> None:
    """Accuracy of every cell, a column of points a method, before fine-tuning and after; bars are means."""
    shown = {column: name for column, name in columns(rows).items() if column != "before"}
    figure = Figure(figsize=(2.2 + 3.2 * len(shown), 3.6), layout="constrained")
    axes: Any = figure.subplots(1, len(shown), squeeze=False)[0]
    for part, (column, name) in zip(axes, shown.items(), strict=True):
        _points(part, rows, column)
        part.set_title(name, fontsize=10)
    axes[0].set_ylabel("test accuracy, %")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, metadata={"Date": None})


def _points(part: Axes, rows: dict[str, list[Result]], column: str) -> None:
    for place, results in enumerate(rows.values()):
        values = [a for r in results if (a := accuracy(r, column)) is not None]
        if values:
            part.scatter([place] * len(values), values, s=22, zorder=2)
            part.hlines(statistics.mean(values), place - 0.3, place + 0.3, color="0.4", linewidth=1)
    part.set_xticks(range(len(rows)), list(rows), rotation=30, ha="right", fontsize=8)
    part.grid(axis="y", linewidth=0.4)


def write_tables(results: Sequence[Result], out: Path) -> str:
    """Write table.md and a plot a table; the tables as text."""
    parts = []
    for name, rows in grouped(results).items():
        parts.append(f"### {name}\n\n{markdown(rows)}\n")
        plot(rows, name, out / f"{name}.svg")
    text = "\n".join(parts) or "no results yet\n"
    if parts:
        (out / "table.md").write_text(text)
    return text
