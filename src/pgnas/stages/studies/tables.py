"""A study's table as Markdown and CSV: mean, standard deviation and standard error over the seeds."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from pgnas.stages.studies.measurements import Measurement, Spread, rows_of, spread_of


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        key: Its name among a measurement's values, and in CSV.
        title: Its head in Markdown.
        factor: What values are multiplied by in Markdown: 100 for a percentage.
        digits: After the point.
    """

    key: str
    title: str
    factor: float = 1.0
    digits: int = 2

    def show(self, spread: Spread | None) -> str:
        """``mean ± standard deviation (standard error)``."""
        if spread is None:
            return "–"
        numbers = [value for value in (spread.mean, spread.deviation, spread.error) if value is not None]
        mean, *around = (f"{self.factor * value:,.{self.digits}f}" for value in numbers)
        return f"{mean} ± {around[0]} ({around[1]})" if around else mean


PARAMS = Column("params", "parameters", digits=0)
TEST_ERROR = Column("test_error", "test error, %", 100)
COLUMNS = (
    PARAMS,
    TEST_ERROR,
    Column("mean_params", "candidates' parameters", digits=0),
    Column("mean_accuracy", "candidates' accuracy, %", 100),
    Column("accuracy_spread", "their spread", 100),
    Column("best_accuracy", "best, %", 100),
)
"""Of the found network, and of the samples among its candidates (validation accuracy, not fine-tuned)."""


def markdown(head: str, measurements: Sequence[Measurement]) -> list[str]:
    """The table, a line each; ``head`` names what the rows are."""
    seeds = sorted({m.seed for m in measurements})
    used = [column for column in COLUMNS if any(column.key in m.values for m in measurements)]
    lines = [f"| {' | '.join([head, *(column.title for column in used)])} |", "|" + "---|" * (1 + len(used))]
    for title, found in rows_of(measurements).items():
        cells = [column.show(spread_of(found, column.key)) for column in used]
        lines.append(f"| {' | '.join([title, *cells])} |")
    shown = ", ".join(map(str, seeds))
    lines += [
        "",
        f"Mean ± standard deviation (standard error) over seeds {shown}." if len(seeds) > 1 else f"Seed {shown}.",
    ]
    return lines


def summary_csv(head: str, measurements: Sequence[Measurement]) -> str:
    """One line a row of the table."""
    keys = [column.key for column in COLUMNS]
    names = [f"{key}_{what}" for key in keys for what in ("mean", "sd", "se")]
    lines: list[list[object]] = [[head, "seeds", *names]]
    for title, found in rows_of(measurements).items():
        spreads = [spread_of(found, key) for key in keys]
        numbers = [(None,) * 3 if s is None else (s.mean, s.deviation, s.error) for s in spreads]
        lines.append([title, len(found), *(value for three in numbers for value in three)])
    return _csv(lines)


def cells_csv(head: str, measurements: Sequence[Measurement]) -> str:
    """One line a row of the table and seed."""
    keys = [column.key for column in COLUMNS]
    lines: list[list[object]] = [[head, "seed", *keys]]
    lines += [[m.row, m.seed, *(m.values.get(key) for key in keys)] for m in measurements]
    return _csv(lines)


def _csv(lines: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()
