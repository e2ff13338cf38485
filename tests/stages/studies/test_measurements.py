"""Sums over seeds, paired differences, and the tables that show them."""

from __future__ import annotations

import csv
import io
import math

import pytest

from pgnas.stages.studies.measurements import Measurement, Spread, difference, rows_of, verdict
from pgnas.stages.studies.tables import cells_csv, markdown, summary_csv

MEASURED = [
    Measurement("ours", 0, {"params": 1200.0, "test_error": 0.10}),
    Measurement("theirs", 0, {"params": 1300.0, "test_error": 0.30}),
    Measurement("ours", 1, {"params": 1000.0, "test_error": 0.20}),
    Measurement("theirs", 1, {"params": 1100.0, "test_error": 0.42}),
    Measurement("ours", 2, {"params": 1100.0, "test_error": 0.15}),
]


def test_the_standard_error_is_the_sample_deviation_over_the_root_of_the_seeds():
    spread = Spread.of([1.0, 2.0, 6.0])
    assert spread.mean == 3.0
    assert spread.deviation == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert spread.error == pytest.approx(math.sqrt(7 / 3))
    assert Spread.of([4.0]) == Spread(4.0, None, 1)


def test_a_difference_is_taken_seed_by_seed_where_both_are():
    found = difference(MEASURED, "ours", "theirs", "test_error")
    assert found is not None
    assert (found.mean, found.count) == (pytest.approx(-0.21), 2)
    assert found.error == pytest.approx(0.01)  # of -0.20 and -0.22; unpaired it would be near 0.08
    assert difference(MEASURED, "ours", "nobody", "test_error") is None


def test_a_verdict_says_how_many_standard_errors_a_difference_is():
    assert "+3.00 points (standard error 1.00 over 3 seeds, 3.0 times that)" in verdict(
        "ours - theirs", Spread(0.03, 0.01 * math.sqrt(3), 3)
    )
    assert "no standard error" in verdict("ours - theirs", Spread(0.03, None, 1))
    assert "no seed" in verdict("ours - theirs", None)


def test_rows_keep_the_order_in_which_they_came():
    assert [len(found) for found in rows_of(MEASURED).values()] == [3, 2]
    assert list(rows_of(MEASURED)) == ["ours", "theirs"]


def test_the_markdown_table_shows_mean_deviation_and_error_and_only_columns_with_values():
    head, _, ours, theirs, _, note = markdown("network", MEASURED)
    assert head == "| network | parameters | test error, % |"
    assert ours == "| ours | 1,100 ± 100 (58) | 15.00 ± 5.00 (2.89) |"
    assert theirs.startswith("| theirs | 1,200 ± 141 (100) |")
    assert "seeds 0, 1, 2" in note


def test_csv_holds_every_cell_and_every_row_in_full_precision():
    cells = list(csv.DictReader(io.StringIO(cells_csv("network", MEASURED))))
    assert [(row["network"], int(row["seed"]), float(row["test_error"])) for row in cells] == [
        (m.row, m.seed, m.values["test_error"]) for m in MEASURED
    ]
    ours, _ = csv.DictReader(io.StringIO(summary_csv("network", MEASURED)))
    assert (ours["seeds"], ours["best_accuracy_mean"]) == ("3", "")
    assert float(ours["test_error_se"]) == Spread.of([0.10, 0.20, 0.15]).error
