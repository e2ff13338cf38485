from __future__ import annotations

from pgnas.report.distributions import accuracies, histogram_figure
from pgnas.report.svg import legible
from pgnas.report.values import percent

RACED = [{"accuracy": 0.3, "count": 10}, {"accuracy": 0.95, "count": 500}, {"accuracy": 0.93, "count": 500}]


def test_candidates_that_left_a_race_early_are_no_measure_of_how_good_they_are() -> None:
    assert accuracies(RACED) == [0.95, 0.93]
    assert accuracies([{"accuracy": 0.3}, {"accuracy": 0.4}]) == [0.3, 0.4]
    shown = f"2, from {percent(0.93)} to {percent(0.95)}"
    assert shown in histogram_figure({"this run": accuracies(RACED)})


def test_a_name_that_begins_with_an_underscore_is_in_the_legend() -> None:
    assert legible("_base", 9).strip() == "_base"
    assert "_base (2)" in histogram_figure({"_base": [0.3, 0.4], "other": [0.2]})
