from __future__ import annotations

from typing import Any

import pytest

from pgnas.report.sureness import about_the_accuracy, about_the_choice, interval, prediction_tables


def measured(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def make_uncertainty() -> dict[str, Any]:
    scores = {"accuracy": measured(0.9), "nll": measured(0.3), "brier": measured(0.2), "ece": measured(0.05)}
    network = scores | {"temperature": 1.25, "calibrated": {"nll": measured(0.28), "ece": measured(0.02)}}
    ood = {"<noise>": {"images": 10, "found": {"entropy": 0.75}, "ensemble": {"mutual_information": 0.8}}}
    return {"samples": 16, "networks": {"found": network, "<b>own": network}, "ood": ood}


def test_scores_stand_with_their_intervals_and_names_are_escaped() -> None:
    html = prediction_tables(make_uncertainty()).replace("\u00a0", " ")
    for part in ("90.0 %", "[89.0 %, 91.0 %]", "[0.290, 0.310]", "1.250", "16 sampled", "0.750", "mutual information"):
        assert part in html
    assert "<noise>" not in html
    assert "<b>" not in html
    assert prediction_tables({}) == ""


def test_the_choice_is_told_with_its_optimism() -> None:
    choice = {
        "selected_accuracy": 0.95, "accuracy": 0.9, "interval": [0.8, 0.96], "images": 70,
        "runner_up": {"probability_better": 0.25},
    }  # fmt: skip
    (sentence,) = about_the_choice(choice)
    for part in ("95.0", "90.0", "80.0", "96.0", "70 images", "0.25"):
        assert part in sentence
    assert list(about_the_choice({})) == []
    (sentence,) = about_the_accuracy({"test_interval": (0.5, 0.75), "test_images": 359})
    assert "359" in sentence
    assert "50.0" in sentence


@pytest.mark.parametrize("value", [None, [], [1], [1, "a"], [float("nan"), 1], "ab", {"a": 1, "b": 2}])
def test_anything_else_is_no_interval(value: Any) -> None:
    assert interval(value) is None
