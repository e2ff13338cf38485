"""What the settings make of losses, schedules and gates."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pgnas.config import RunConfig
from pgnas.progress import SilentReporter
from pgnas.run_folder import RunFolder
from pgnas.stages.context import Context
from pgnas.stages.engine import make_engine
from pgnas.stages.phases import NetworkPhase
from pgnas.stages.recipe import auxiliary_loss
from pgnas.stages.schedule import cosine_schedule
from pgnas.supernets.enas_cells import DropPath

Outputs = namedtuple("Outputs", "logits aux2 aux1")


@pytest.fixture
def make_context(tmp_path):
    def make(**settings):
        config = RunConfig(data="digits", out=str(tmp_path / "run"), **settings)
        return Context(RunFolder.create_or_resume(config), SilentReporter())

    return make


def test_the_loss_of_auxiliary_heads_is_weighed_and_added():
    loss, (a, b, c), y = auxiliary_loss(F.cross_entropy, 0.4), torch.randn(3, 5, 4), torch.arange(5) % 4
    expected = F.cross_entropy(a, y) + 0.4 * (F.cross_entropy(b, y) + F.cross_entropy(c, y))
    assert torch.allclose(loss((a, b, c), y), expected)
    assert torch.allclose(loss(Outputs(a, b, c), y), expected)
    assert torch.equal(loss((a, None), y), F.cross_entropy(a, y))
    assert torch.equal(loss(a, y), F.cross_entropy(a, y))


def test_drop_path_follows_the_place_in_the_run():
    network = nn.Sequential(nn.Linear(2, 2), DropPath(0.4))
    schedule = cosine_schedule(0.1, 200)
    engine = make_engine("cpu", "fp32")
    phase = NetworkPhase(
        network, name="train", engine=engine, schedule=schedule, loss=F.cross_entropy, weight_decay=0.0
    )
    for step in (99, 0, 199):  # what came before does not matter: a resumed run does the same
        phase.prepare_step(step)
        assert float(network[1].p) == pytest.approx(0.4 * (step + 1) / 200)
        assert phase.weights.param_groups[0]["lr"] == schedule.at(step)


def test_exclusions_and_gated_inputs_reach_the_supernet(make_context):
    run = make_context(
        model="multibranch-resnet:width=2,blocks=1", exclude=("classifier", "blocks.1.*"), gate_inputs=True
    )
    gated = {site.layer for site in run.supernet.space.sites}
    assert "stem.0" in gated
    assert not any(name == "classifier" or name.startswith("blocks.1.") for name in gated)


@pytest.mark.parametrize(("settings", "expected"), [({}, None), ({"data_size": 5e5}, 5e5)])
def test_the_data_size_is_that_of_the_settings_or_of_the_data(make_context, settings, expected):
    run = make_context(model="multibranch-resnet:width=2,blocks=1", **settings)
    images = len(run.data.train)
    assert run.recipe.data_size == (expected or (images if run.data.augmentation.is_identity else 10 * images))


def test_the_hole_is_as_large_as_asked(make_context):
    assert make_context(model="multibranch-resnet:width=2", cutout=3).data.augmentation.cutout == 3


@pytest.mark.parametrize(
    ("decide_at", "reached", "before"),
    [("never", 0.45, 0.4), ("60%", 0.27, 0.24), ("50%", 0.225, 0.2), ("40%", 0.28, 0.24)],
)
def test_what_follows_the_decision_or_the_cap_is_trained_at_the_caps_cost(make_context, decide_at, reached, before):
    chosen = {"max_macs": "40%", "epochs": 20, "decide_at": decide_at}
    run = make_context(model="multibranch-resnet:width=2,blocks=1", **chosen)
    settings = run.recipe.posterior_phase(run.supernet, compiled=False).settings
    steps = 20 * run.steps_an_epoch
    assert settings.target(0.4, reached * steps) == pytest.approx(0.4)
    assert settings.target(0.4, before * steps) > 0.43


def test_of_a_budget_that_the_search_overdraws_the_found_network_has_the_rest_of_the_schedule(make_context):
    run = make_context(model="multibranch-resnet:width=2,blocks=1", max_macs="40%", budget="1", decide_at="50%")
    steps, recipe = run.steps_an_epoch, run.recipe
    assert [recipe.decision_step(first) / steps for first in (0.0, 0.3, 0.8, 1.7)] == [0.5, 0.5, 0.8, 1.0]
    tenth = replace(run.full, macs=run.full.macs // 10)
    for decided, searched, position, epochs in ((1, 0.8, 0.8, 2), (1, 0.3, 0.5, 7), (2, 0.48, 0.5, 5)):
        left, pace = recipe.remaining(decided, searched, tenth, searched=searched)
        assert len(left) == epochs
        assert pace is not None
        assert pace.at(decided * steps) == pytest.approx(position * steps)
        assert pace.at((decided + epochs) * steps) == pytest.approx(steps)
        rates = [recipe.schedule.at(pace.at(step)) for step in range(decided * steps, (decided + epochs) * steps)]
        assert min(rates) > 0
