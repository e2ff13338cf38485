from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench.peers.table import Spread, accuracy, grouped, markdown, paired, write_tables

Make = Callable[..., dict[str, Any]]


def test_a_difference_is_of_the_same_seed(make_result: Make):
    ours = [make_result("pgnas", seed, 0.5, 0.8 + seed / 100) for seed in (2, 0, 1)]
    theirs = [make_result("uniform", seed, None, 0.79 + seed / 100) for seed in (0, 1, 2, 3)]
    found = paired(ours, theirs, "after")
    assert found is not None
    assert (found.count, found.mean) == (3, pytest.approx(1.0))
    assert found.deviation == pytest.approx(0.0, abs=1e-9)  # seeds paired otherwise would differ


def test_what_a_method_does_not_have_is_not_compared(make_result: Make):
    ours, theirs = [make_result("pgnas", 0, 0.5, 0.8)], [make_result("uniform", 0, None, 0.8)]
    assert paired(ours, theirs, "before") is None
    assert paired(ours, [make_result("uniform", 1, None, 0.8)], "after") is None


def test_ahead_is_more_than_two_standard_errors():
    error = math.sqrt(3)  # of three numbers with a deviation of 3
    for mean, verdict in ((2 * error + 0.1, True), (2 * error - 0.1, False)):
        assert Spread(mean, 3.0, 3).is_ahead is verdict
        assert Spread(-mean, 3.0, 3).is_behind is verdict
    assert not Spread.of([5.0]).is_ahead  # one seed shows nothing


def test_a_spread_is_the_sample_s():
    found = Spread.of([1.0, 2.0, 3.0])
    assert (found.mean, found.deviation, found.error) == (2.0, 1.0, pytest.approx(1 / math.sqrt(3)))


def test_tables_do_not_mix_budgets(make_result: Make):
    tables = grouped([make_result("pgnas", 0, 0.5, 0.8), make_result("pgnas", 0, 0.5, 0.2, epochs=2)])
    assert [len(rows["pgnas"]) for rows in tables.values()] == [1, 1]


def test_accuracy_after_extra_epochs_is_read_where_it_is():
    result = {"before": {"test": 0.25}, "extra": {"1": {"test": 0.5}, "10": {"test": 0.75}}}
    assert [accuracy(result, column) for column in ("before", "1", "10", "3")] == [25.0, 50.0, 75.0, None]


def test_a_table_says_each_method_s_mean_and_pgnas_s_lead(make_result: Make):
    results = [make_result("fastnas", seed, 0.2, 0.70) for seed in range(3)]
    results += [make_result("pgnas", seed, 0.6, 0.75 + seed / 100) for seed in range(3)]
    ((_, rows),) = grouped(results).items()
    lines = markdown(rows).splitlines()
    ours = next(line for line in lines if line.startswith("| PGNAS |"))
    assert "76.00 ± 1.00" in ours
    assert "40.0 ± 0.0 %" in ours
    assert "3 of 3" in ours
    lead = lines[-1]
    assert "+40.00 (0.00) ahead" in lead
    assert "+6.00 (0.58) ahead" in lead


def test_tables_and_plots_are_written(make_result: Make, tmp_path: Path):
    results = [make_result("pgnas", 0, 0.6, 0.8), make_result("uniform", 0, None, 0.7)]
    text = write_tables(results, tmp_path)
    assert (tmp_path / "table.md").read_text() == text
    (plot,) = tmp_path.glob("*.svg")
    assert plot.read_text().lstrip().startswith("<?xml")


def test_without_results_nothing_is_written(tmp_path: Path):
    assert "no results" in write_tables([], tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_full_network_has_no_cap_to_meet(make_result: Make):
    full = make_result("full", 0, None, 0.8) | {"cap_met": False}
    ((_, rows),) = grouped([full, make_result("pgnas", 0, 0.5, 0.8)]).items()
    shown = {line.split(" | ")[0]: line for line in markdown(rows).splitlines()}
    assert "0 of 1" not in shown[next(name for name in shown if "full" in name)]
    assert "1 of 1" in shown["| PGNAS"]
