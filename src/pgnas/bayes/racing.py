"""Which of C candidates scores best on N held-out images, with fewer than C x N passes.

    race = halving(10_000, 5_000, budget=0.05, generator=generator)
    while (request := race.request()) is not None:
        race = race.observe(scores(request.arms, request.images))  # (arms, images), 1 where correct
    race.result()

`exhaustive` scores everything, `halving` spends a fixed share, `elimination` what a stated error probability takes. All
are one state machine (`Race`): a request may be answered in parts (``request(limit=...)``) or by several processes
(``request.shard(rank, world)``), and ``state()`` is plain tensors from which ``resume`` goes on.

Many images are right, or wrong, for nearly every candidate: they cost passes and decide nothing. With many candidates
a pilot of a few dozen is therefore scored on all images, and the images are drawn in proportion to how much those
disagree. Halving then also lets arms see different images, and judges each by those it shares features with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pgnas.bayes._elimination import Elimination
from pgnas.bayes._halving import Halving, HalvingPlan, least_budget, pilot_size, plan_halving
from pgnas.bayes._mixed_model import standardized
from pgnas.bayes._race import Race, RaceResult, Request
from pgnas.errors import InputError

__all__ = [
    "HalvingPlan",
    "Race",
    "RaceResult",
    "Request",
    "elimination",
    "exhaustive",
    "halving",
    "least_budget",
    "plan_halving",
]


def exhaustive(arms: int, images: int, *, generator: torch.Generator) -> Race:
    """Every arm on every image.

    Args:
        arms: C.
        images: N.
        generator: Gives the images an order.
    """
    plan = HalvingPlan((arms,), (images,))
    return Race.begin(Halving(plan, torch.empty(arms, 0, dtype=torch.float64)), arms, images, generator)


def halving(
    arms: int,
    images: int,
    *,
    budget: float,
    generator: torch.Generator,
    batch: int = 1,
    pilot: int | None = None,
    features: Tensor | None = None,
) -> Race:
    """Successive halving within a fixed number of passes; without a pilot `HalvingPlan.error_bound` bounds its error.

    Args:
        arms: C.
        images: N.
        budget: Share of the C x N exhaustive passes, in (0, 1]; never exceeded.
        generator: Draws the order of the images.
        batch: Images are asked for in multiples of this many; few, as the first stage can afford few.
        pilot: Arms scored on all images beforehand, part of the budget; None: up to 64, an eighth of the budget.
        features: What arms may have in common, (C, F), such as which units each keeps. With a pilot and 64 arms or
            more, these are then judged by each other, too; else features are not used.

    Raises:
        InputError: If the budget does not pay one batch for each arm and all images for one, or there is not a row of
            features for each arm.
    """
    plan = plan_halving(arms, images, budget, batch=batch, pilot=pilot)
    if features is None or not plan.pilot:
        known = torch.empty(arms, 0, dtype=torch.float64)
    elif features.dim() == 2 and len(features) == arms:
        known = standardized(features)
    else:
        rule, shape = f"must have shape ({arms}, F)", tuple(features.shape)
        raise InputError("racing features", rule, value=shape, remedy="give a row for each arm")
    return Race.begin(Halving(plan, known), arms, images, generator)


def elimination(
    arms: int,
    images: int,
    *,
    delta: float,
    generator: torch.Generator,
    epsilon: float = 0.0,
    batch: int = 25,
    pilot: int | None = None,
) -> Race:
    """Drop arms that are refuted to be the best; the winner is wrong with probability at most ``delta``.

    Args:
        arms: C.
        images: N.
        delta: Error probability, in (0, 1).
        generator: Draws the order of the images; the probability is over these draws.
        epsilon: What the winner may be behind the best, in score, >= 0.
        batch: Images are asked for in multiples of this many.
        pilot: Arms scored on all images beforehand; None: up to 64, half a percent of all.

    Raises:
        InputError: If an argument leaves its range.
    """
    if not 0.0 < delta < 1.0:
        raise InputError("racing delta", "must lie in (0, 1)", value=delta, remedy="0.05 errs in 5 % of the races")
    if not 0.0 <= epsilon < 1.0:
        raise InputError("racing epsilon", "must lie in [0, 1)", value=epsilon, remedy="0.001 is a tenth of a point")
    if batch < 1:
        raise InputError("racing batch", "must be >= 1", value=batch, remedy="give at least one image a batch")
    pilot = pilot_size(arms, 0.04) if pilot is None else pilot
    if not 0 <= pilot <= arms:
        raise InputError("racing pilot", f"must lie in 0..{arms}", value=pilot, remedy="give fewer arms")
    return Race.begin(Elimination(delta, epsilon, batch, pilot), arms, images, generator)
