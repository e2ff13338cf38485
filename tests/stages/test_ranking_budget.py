"""What halving may spend is checked before the search, for the candidates asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pgnas
from pgnas.bayes import plan_halving
from pgnas.config import RunConfig
from pgnas.errors import ConfigError
from pgnas.stages.ranking_budget import budget_for, require_ranking_budget


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10))


def test_a_budget_too_small_for_the_candidates_is_refused_before_the_search(tmp_path):
    settings = {"epochs": 1, "candidates": 4, "ranking": "halving", "device": "cpu", "out": tmp_path / "run"}
    with pytest.raises(ConfigError) as caught:
        pgnas.run(model=network(), data="digits", **settings)
    assert str(caught.value) == (
        "--ranking-budget must pay 1 image for each of 4 candidates and all 72 for the winner, got 0.05; "
        "give 0.2605 or more, or --ranking exhaustive"
    )
    assert not (tmp_path / "run").exists()


def test_the_check_refuses_what_the_race_of_all_candidates_would_and_nothing_else():
    def config(**changes):
        return RunConfig(model="", data="", out="", **{"candidates": 4, "ranking": "halving"} | changes)

    require_ranking_budget(config(ranking_budget=75 / 288), 72)
    with pytest.raises(ConfigError, match="--ranking-budget"):
        require_ranking_budget(config(ranking_budget=74.9 / 288), 72)
    require_ranking_budget(config(ranking="exhaustive"), 72)
    require_ranking_budget(config(ranking="elimination"), 72)
    require_ranking_budget(config(candidates=1), 72)


@given(st.integers(1, 3000), st.integers(1, 600), st.floats(0.001, 1.0), st.floats(0, 1))
def test_what_is_checked_for_all_candidates_suffices_for_fewer(asked, images, budget, share):
    config = RunConfig(model="", data="", out="", candidates=asked, ranking="halving", ranking_budget=budget)
    drawn = max(1, round(share * asked))
    try:
        require_ranking_budget(config, images)
    except ConfigError:
        return
    allowed = budget_for(config, drawn)
    assert plan_halving(drawn, images, allowed).passes <= max(images, budget * asked * images + 1e-6)
    assert budget_for(config, asked) == budget


def test_a_race_of_fewer_candidates_than_asked_for_is_held(tmp_path):
    settings = {"candidates": 40, "ranking": "halving", "ranking_budget": 0.05, "epochs": 1, "device": "cpu"}
    run = pgnas.run(model=network(), data="digits", out=tmp_path / "run", **settings)
    found = run["candidates"]
    assert found["count"] < 5
    assert 0.05 < found["passes_share"] <= 0.05 * 40 / found["count"]
