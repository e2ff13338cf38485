"""Learning-rate schedules."""

from __future__ import annotations

import itertools

import pytest

from pgnas.config import RunConfig
from pgnas.stages.recipe import schedule_of

NEEDED = {"model": "m", "data": "d", "out": "o"}


def rates(epochs, steps_an_epoch=10, **settings):
    schedule = schedule_of(RunConfig(**NEEDED, **settings), epochs * steps_an_epoch, steps_an_epoch)
    return [schedule.at(step) for step in range(epochs * steps_an_epoch)]


def test_multistep_is_a_staircase():
    found = rates(9, lr=0.1, schedule="multistep", milestones=(3.0, 6.0))
    assert found == pytest.approx([0.1] * 30 + [0.01] * 30 + [0.001] * 30)


def test_restarts_are_cosines_of_growing_length():
    """T0 = 10, Tmul = 2 and 630 epochs, the paper's, are six whole cosines: 10 + 20 + ... + 320."""
    found = rates(630, 1, lr=0.05, lr_floor=1e-4, schedule="sgdr")
    assert [step for step, rate in enumerate(found) if rate == 0.05] == [0, 10, 30, 70, 150, 310]
    assert found[310 + 160] == pytest.approx((0.05 + 1e-4) / 2)
    assert min(found) > 1e-4
    assert found[-1] == pytest.approx(1e-4, rel=0.02)
    for start, end in itertools.pairwise([0, 10, 30, 70, 150, 310, 630]):
        assert sorted(found[start:end], reverse=True) == found[start:end]


def test_a_restart_need_not_take_whole_epochs():
    whole, shrunk = (
        rates(63, 10, schedule="sgdr", restart_epochs=1.0),
        rates(7, 90, schedule="sgdr", restart_epochs=1 / 9),
    )
    assert whole == pytest.approx(shrunk)


@pytest.mark.parametrize("settings", [{}, {"schedule": "sgdr"}, {"schedule": "multistep", "milestones": (5.0,)}])
def test_warm_up_is_linear_and_then_the_schedule_begins(settings):
    found = rates(10, warmup=2.0, **settings)
    assert found[:20] == pytest.approx([0.1 * (step + 1) / 20 for step in range(20)])
    assert found[20] == 0.1
    assert rates(10, warmup=0.0, **settings)[0] == 0.1


def test_a_cosine_ends_at_its_floor():
    found = rates(10, warmup=0.0, lr_floor=0.02)
    assert found[50] == pytest.approx(0.06)
    assert found[-1] == pytest.approx(0.02, rel=1e-2)
