"""Successive halving: a fixed number of passes, spent in stages that each keep about the better half.

The rule is that of Karnin, Koren & Somekh, "Almost optimal exploration in multi-armed bandits" (ICML 2013), in the form
of Jamieson & Talwalkar (AISTATS 2016) where scores accumulate over the stages. All arms see the same images, so that
what is hard for all cancels, and those who are left at the end see all images: among them the choice is exact.

With many arms a pilot tells what is hard, so that arms can see different images and still be compared; what they have
in common, such as the gates of an architecture, is then told by all of them together (`_mixed_model`). Replayed on the
answers of real candidates this loses far less at the same number of passes.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pgnas.bayes._image_order import expected_scores, inclusion
from pgnas.bayes._mixed_model import additive_variance, predicted
from pgnas.bayes._rule import Verdict, View
from pgnas.errors import InputError

SPENDING = 0.7
"""An arm sees (arms in the stage)^-0.7 images in a stage.

With 1 (Karnin et al.) every stage costs the same; with less the early ones, where most can be lost, cost more. Replayed
with 10,000 arms and 5 % of the passes, each arm judged by itself, values from 0.7 to 1.15 did equally well within the
noise of 24 repetitions.
"""

PILOT_SHARE = 1 / 8
"""Share of the budget that the pilot may cost."""

PILOT_MOST = 64
PILOT_LEAST = 16

GROUPS = 64
"""With a pilot: orders of the images, so that all arms together see many images early."""
GROUP_LEAST = 32
"""Arms of a group in the mean, at least."""
FLOOR = 0.03
"""Least sampling weight of an image. Of 300 candidates' answers 0.02 to 0.1 told the means alike, 0.4 worse."""
MOST_ADDITIVE = 0.9
"""Share of the scores' variance that features may explain, at most."""
ALIKE, TINY = 1e-9, 1e-12
"""A variance below the first is that of arms that answer alike (0.003 points), of which nothing is learned."""


def pilot_size(arms: int, budget: float) -> int:
    """Arms that a pilot may have within `PILOT_SHARE` of a budget in units of C x N; 0 if too few to be of use."""
    size = min(PILOT_MOST, int(PILOT_SHARE * budget * arms))
    return size if size >= PILOT_LEAST else 0


@dataclass(frozen=True)
class HalvingPlan:
    """Stage r scores ``sizes[r]`` arms up to image ``stops[r]``; ``stops[-1]`` is N.

    Attributes:
        sizes: Arms of each stage, from C downwards.
        stops: Images seen at the end of each stage.
        pilot: Arms scored on all images beforehand.
    """

    sizes: tuple[int, ...]
    stops: tuple[int, ...]
    pilot: int = 0

    @property
    def passes(self) -> int:
        """Arm-images in all."""
        starts = (0, *self.stops[:-1])
        race = sum(size * (stop - start) for size, start, stop in zip(self.sizes, starts, self.stops, strict=True))
        return race + self.pilot * self.stops[-1]

    def error_bound(self, means: Tensor) -> float:
        """Probability, at most, that the best arm is dropped, if the arms' means over all images are ``means`` (C,).

        Let d_j be by how much arm j is behind. Dropping the best after stage r takes sizes[r+1] arms that score no less
        on n = stops[r] images; i of them may be the i nearest, so that Markov's inequality and Hoeffding's for sampling
        without replacement (Serfling 1974; Bardenet & Maillard, Bernoulli 2015) on differences in [-1, 1] give

            P(dropped) <= sum_r min_i sum_{j > i} exp(-n d_j^2 / (2 rho_n)) / (sizes[r+1] - i)

        with rho_n = min(1 - (n - 1) / N, (1 - n / N)(1 + 1 / n)). It holds for arms that share images and for scores
        that accumulate; not with a pilot, which makes the order of the images depend on their scores: then it is 1.
        """
        if self.pilot:
            return 1.0
        gaps = (means.max() - means).double().sort().values[1:]
        images, total = self.stops[-1], 0.0
        for kept, n in zip(self.sizes[1:], self.stops[:-1], strict=True):
            rho = min(1 - (n - 1) / images, (1 - n / images) * (1 + 1 / n))
            behind = torch.exp(-n * gaps.square() / (2 * rho)).flip(0).cumsum(0).flip(0)
            nearest = torch.arange(min(kept, len(gaps)))
            total += float((behind[nearest] / (kept - nearest)).min())
        return min(1.0, total)


def plan_halving(arms: int, images: int, budget: float, *, batch: int = 1, pilot: int | None = None) -> HalvingPlan:
    """The stages of successive halving within a budget.

    Every stage keeps half of its arms; the last one, of as many arms as can be paid, goes on to the last image. Among
    the numbers of stages that fit, it is the one where the last stage's images follow most evenly on the others'.

    Args:
        arms: C.
        images: N.
        budget: Share of the C x N exhaustive passes, in (0, 1].
        batch: Images are asked for in multiples of this many.
        pilot: Arms scored on all images beforehand, part of the budget; None: as many as are of use.

    Raises:
        InputError: If the budget is not a share, or does not pay one batch for each arm and all images for one.
    """
    if not 0.0 < budget <= 1.0:
        raise InputError("racing budget", "must be a share in (0, 1]", value=budget, remedy="0.05 spends 5 %")
    if not 1 <= batch <= images:
        raise InputError("racing batch", f"must lie in 1..{images}", value=batch, remedy="give fewer images a batch")
    allowed = math.floor(budget * arms * images + 1e-6)
    if arms == 1 or allowed >= arms * images:
        return HalvingPlan((arms,), (images,))
    asked, pilot = pilot, pilot_size(arms, budget) if pilot is None else pilot
    if pilot == 1 or not 0 <= pilot <= arms:
        raise InputError("racing pilot", f"must be 0 or lie in 2..{arms}", value=pilot, remedy="one arm has no spread")
    if not _pays(arms, images, budget, batch, asked):
        each = f"{batch} image{'s' if batch > 1 else ''} for each of {arms} candidates"
        least = 100 * least_budget(arms, images, batch=batch, pilot=asked)
        raise InputError(
            "racing budget",
            f"must pay {each} and all {images} for the winner" + (f" and {pilot} others" if pilot else ""),
            value=f"{budget:.2%}",
            remedy=f"spend {least:.2f} % or more" + (", or use smaller batches" if batch > 1 else ""),
        )
    sizes = [arms]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    plans = [_spend(sizes[:stages], images, allowed, batch, pilot) for stages in range(2, len(sizes) + 1)]
    fitting = [plan for plan in plans if plan.stops[-2] < images and plan.passes <= allowed]
    if not fitting:
        first = (allowed - (pilot + 1) * images) // (arms - 1) // batch * batch
        return HalvingPlan((arms, 1), (first, images), pilot)
    return min(fitting, key=_unevenness)


def least_budget(arms: int, images: int, *, batch: int = 1, pilot: int | None = None) -> float:
    """The share, in steps of 0.0001, that suffices for `plan_halving`, as do all above it.

    Args:
        arms: C.
        images: N.
        batch: As of `plan_halving`.
        pilot: As of `plan_halving`.
    """
    steps = itertools.takewhile(lambda step: _pays(arms, images, step / 10_000, batch, pilot), range(10_000, 0, -1))
    return min(steps) / 10_000


def _pays(arms: int, images: int, budget: float, batch: int, pilot: int | None) -> bool:
    """Whether a budget pays all passes, or the pilot, a batch for each arm and the remaining images for one."""
    allowed = math.floor(budget * arms * images + 1e-6)
    pilot = pilot_size(arms, budget) if pilot is None else pilot
    return allowed >= min(arms * images, pilot * images + arms * batch + images - batch)


def _spend(sizes: list[int], images: int, allowed: int, batch: int, pilot: int) -> HalvingPlan:
    """Stages in which an arm sees b * size^-SPENDING images, b as the budget allows; the last goes on to the end."""
    last = sizes[-1]
    budget = allowed - (last + pilot) * images  # what is left once the last arms see everything
    scale = budget / sum((size - last) * size**-SPENDING for size in sizes[:-1])
    stops, seen = [0], 0.0
    for size in sizes[:-1]:
        seen += scale * size**-SPENDING
        stops.append(max(stops[-1] + batch, math.floor(seen / batch) * batch))
    return HalvingPlan(tuple(sizes), (*stops[1:], images), pilot)


def _unevenness(plan: HalvingPlan) -> float:
    """How far the last stage is from what `SPENDING` wants of it, given the one before; 0 is even."""
    seen, images = plan.stops[-2:]
    before = seen - (plan.stops[-3] if len(plan.stops) > 2 else 0)
    wanted = before * (plan.sizes[-2] / plan.sizes[-1]) ** SPENDING
    return abs(math.log((images - seen) / wanted))


@dataclass(frozen=True, eq=False)
class Halving:
    """The rule of a plan.

    Without a pilot all arms see the same images, and the higher sums stay. With one, arms see the images group by group
    in other orders, each score less what the pilot lets expect of the image; an arm is judged by these and by those of
    the arms that share its features (see `_mixed_model`). So everything seen tells of every arm.

    Attributes:
        plan: The stages.
        features: Of the arms, as of `standardized`, (C, F); F = 0: each arm is judged by itself.
    """

    plan: HalvingPlan
    features: Tensor

    @property
    def pilot(self) -> int:
        """Arms of the pilot."""
        return self.plan.pilot

    @property
    def groups(self) -> int:
        """One without a pilot: then only on the same images can arms be compared."""
        return max(1, min(GROUPS, self.plan.sizes[0] // GROUP_LEAST)) if self.pilot else 1

    @property
    def floor(self) -> float:
        """Lower than where an error probability is stated."""
        return FLOOR

    @property
    def error(self) -> float | None:
        """None: it depends on the gaps between the arms (`HalvingPlan.error_bound`); 0 if nothing is dropped."""
        return 0.0 if len(self.plan.sizes) == 1 else None

    @property
    def statement(self) -> str:
        """What is known about the winner."""
        first, last = self.plan.sizes[0], self.plan.sizes[-1]
        if first == last:
            return "the best of all candidates on all images"
        return f"the best of the {last} candidates that raced to the end; whether a better one was dropped is not known"

    @property
    def facts(self) -> int:
        """A variance, then two numbers for each stage but the last."""
        return 2 * len(self.plan.stops) - 1

    def learn(self, pilot: Tensor, weights: Tensor) -> Tensor:
        """The variance of the arms' scores; then for each stage but the last a scale and a noise variance.

        The first images are the hard ones, on which arms differ more: the scale is by how much, for the pilot's arms.
        The noise is that of the mean over an arm's images, on the scale of all images.
        """
        expected, scores = expected_scores(pilot), pilot.double()
        means, deviations = scores.mean(1), scores - scores.mean(0)
        facts = [means.var(correction=1)]
        for stop in self.plan.stops[:-1]:
            chance = inclusion(weights, stop)
            scale = (deviations @ chance / stop).std(correction=1) / means.std(correction=1).clamp(min=TINY)
            scale = scale.clamp(min=1.0)
            noise = (chance * (1 - chance) * expected * (1 - expected)).sum() / (stop * scale).square()
            facts += [scale, noise]
        return torch.stack(facts)

    def memory(self, arms: int) -> tuple[Tensor, Tensor]:
        """Evidence with a pilot: the score that an arm's images tell, and the variance of that.

        Memory, from the first stage: the level of all arms' scores, the variance of their scores, and how much of it
        features explain.
        """
        columns, kept = (2, 3) if self.pilot else (0, 0)
        return torch.zeros(arms, columns, dtype=torch.float64), torch.zeros(kept, dtype=torch.float64)

    def stop(self, stage: int, seen: int, images: int) -> int:
        """As planned."""
        return self.plan.stops[stage]

    def keep(self, scores: Tensor) -> Tensor:
        """Sums (A, 1)."""
        return scores.double().sum(1, keepdim=True)

    def total(self, block: Tensor) -> Tensor:
        """Sums (A,)."""
        return block[:, 0]

    def judge(self, view: View) -> Verdict:
        """Those with the higher sums or predictions stay; among equals the lower arm."""
        scores, evidence, memory = self._predicted(view) if self.pilot else (view.sums, view.evidence, view.memory)
        stays = torch.zeros(len(scores), dtype=torch.bool)
        ascending = torch.argsort(view.arms)
        best = torch.argsort(scores[ascending], descending=True, stable=True)[: self.plan.sizes[view.stage + 1]]
        stays[ascending[best]] = True
        return Verdict(stays, evidence, memory)

    def _predicted(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        """What the scores of the arms alive over all images will be, around the level of all; evidence and memory."""
        scale, noise = view.learned[[2 * view.stage + 1, 2 * view.stage + 2]]
        values = (view.sums - view.expected) / (view.stop * scale)
        evidence = torch.stack([values, noise.expand_as(values)], 1)
        everyone = view.everyone.index_copy(0, view.arms, evidence)
        memory = view.memory if view.stage else self._components(view.learned[0], everyone[:, 0])
        level, variance, additive = memory.tolist()
        values, noise = everyone[:, 0] - level, everyone[:, 1]
        scores = predicted(self.features, values, noise, additive=additive, own=variance - additive)
        return scores[view.arms], evidence, memory

    def _components(self, variance: Tensor, values: Tensor) -> Tensor:
        """The memory, from the variance of the pilot's scores and what the first stage tells of all arms, (C,)."""
        around = values - values.mean()
        variance = variance if variance > ALIKE else around.var().clamp(min=TINY)
        found = additive_variance(self.features, around, torch.arange(len(around)) % self.groups)
        return torch.stack([values.mean(), variance, (MOST_ADDITIVE * variance).clamp(max=found)])
