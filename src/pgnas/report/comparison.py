"""Several runs beside each other: one table, one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pgnas.report import page
from pgnas.report.distributions import accuracies, histogram_figure
from pgnas.report.sureness import interval
from pgnas.report.svg import FIRST, INK, MUTED, SECOND, THIRD, legible, svg
from pgnas.report.values import DASH, Row, count, duration, number, percent, section, share_of

HEADS = ("Run", "Test", "Validation", "Multiply-adds", "of full", "Parameters", "of full", "Time")
_STYLES = [(colour, marker) for marker in "os^Dv" for colour in (FIRST, SECOND, THIRD, MUTED, INK)]


@dataclass(frozen=True)
class ComparedRun:
    """What is compared of a run.

    Attributes:
        name: What to call it.
        result: The fields of ``result.json``, or of the stages done so far.
        settings: Its settings.
        candidates: The rows of its ``candidates.jsonl``.
    """

    name: str
    result: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    candidates: Sequence[Mapping[str, Any]] = ()


def comparison_rows(runs: Sequence[ComparedRun]) -> list[tuple[str, ...]]:
    """A row a run, of :data:`HEADS`."""
    return [_row(run) for run in runs]


def _row(run: ComparedRun) -> tuple[str, ...]:
    found, full = section(run.result, "found"), section(run.result, "full")
    seconds = [value for value in map(number, section(run.result, "seconds").values()) if value is not None]
    bounds, test = interval(found.get("test_interval")), percent(found.get("test_accuracy"))
    costs = [
        shown
        for kind in ("macs", "params")
        for shown in (count(found.get(kind)), percent(share_of(found.get(kind), full.get(kind))))
    ]
    shown = test if bounds is None else f"{test} [{percent(bounds[0])}, {percent(bounds[1])}]"
    return (run.name, shown, percent(found.get("val_accuracy")), *costs, duration(sum(seconds)) if seconds else DASH)


def differing_settings(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """The settings in which the runs differ, each with its value in every run; where they are does not count."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name != "out")
    values = {name: [_shown(run.settings.get(name)) for run in runs] for name in names}
    return {name: shown for name, shown in values.items() if len(set(shown)) > 1}


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or DASH
    return DASH if value is None else str(value)


def render_comparison(runs: Sequence[ComparedRun]) -> str:
    """The page, an HTML document without outside requests."""
    rows = [page.row(name, list(map(page.number_cell, cells))) for name, *cells in comparison_rows(runs)]
    sentences = [f"{run.name}: {run.result['sentence']}" for run in runs if run.result.get("sentence")]
    differing = differing_settings(runs)
    lines = [page.row(name, list(map(page.cell, values))) for name, values in differing.items()]
    body = [
        f"<header>\n<h1>{len(runs)} runs compared</h1>\n</header>\n",
        page.part("Results", page.table("The networks that were found.", HEADS, rows, numbers=range(1, len(HEADS)))),
        page.part("In a sentence each", page.items(sentences)),
        page.part("Figures", page.figures(_figures(runs))),
        page.part(
            "In what the runs differ",
            page.table("Settings that are not the same in all.", ["Setting", *(r.name for r in runs)], lines),
        ),
    ]
    return page.page(f"pgnas: {len(runs)} runs compared", "".join(body))


def _figures(runs: Sequence[ComparedRun]) -> Iterator[str]:
    yield page.figure(_networks_figure(runs), "Found networks, accuracy against cost.")
    groups = {run.name: accuracies(run.candidates) for run in runs}
    yield page.figure(histogram_figure(groups), "How good each run's candidates are, not fine-tuned.")


def _networks_figure(runs: Sequence[ComparedRun]) -> str:
    points = [(run.name, *_point(run.result)) for run in runs]
    known = [(name, cost, accuracy, bounds) for name, cost, accuracy, bounds in points if cost and accuracy is not None]
    if not known:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (name, cost, accuracy, bounds) in enumerate(known):
            colour, marker = _STYLES[index % len(_STYLES)]
            error = None if bounds is None else [[max(0.0, accuracy - bounds[0])], [max(0.0, bounds[1] - accuracy)]]
            axes.errorbar(
                [cost], [accuracy], yerr=error, color=colour, marker=marker, linestyle="none", elinewidth=1, capsize=3,
                label=legible(name, 28),
            )  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.15)
        axes.set_xlabel("multiply-adds, % of the full network's")
        axes.set_ylabel("accuracy on the test images, %")
        figure.legend(loc="outside upper left", ncols=1 if len(known) > 4 else 2)

    label = "; ".join(
        f"{name}: {accuracy:.1f} % at {cost:.1f} % of the multiply-adds" for name, cost, accuracy, _ in known
    )
    return svg("networks", draw, width=5, height=3.6 + 0.2 * max(0, len(known) - 4), label=label)


def _point(result: Row) -> tuple[float | None, float | None, tuple[float, float] | None]:
    """Cost as a share, accuracy and its interval, all in percent."""
    found = section(result, "found")
    share, accuracy = (
        share_of(found.get("macs"), section(result, "full").get("macs")),
        number(found.get("test_accuracy")),
    )
    bounds = interval(found.get("test_interval"))
    return (
        None if share is None else 100 * share,
        None if accuracy is None else 100 * accuracy,
        None if bounds is None else (100 * bounds[0], 100 * bounds[1]),
    )
