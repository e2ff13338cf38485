"""Elimination with a stated error probability: an arm leaves when the data refute that it is the best.

Hoeffding races (Maron & Moore, NIPS 1993) bound every difference of two arms at every time and pay for it with a union
bound over arms and times. Only the best arm needs protection, and one test of the hypothesis "arm i is the best" needs
neither union:

* Let the images be drawn without replacement, the next one j with probability g_j / G_t, G_t the weight of the N - t
  images left. Before each image a reference is chosen from the past alone: a few leading arms. D_t is the mean score of
  the reference on the image drawn, less arm i's. If arm i is the best, the sum of D over all N images is <= 0 for *any*
  reference. What the reference is ahead on the images seen, L_t, must then be given back on those left:

      E[D_t * r_t + L_t / (N - t) | past] <= 0,    r_t = G_t / ((N - t) g_j),

  as in Waudby-Smith & Ramdas, "Confidence sequences for sampling without replacement" (NeurIPS 2020) for equal weights
  and Shekhar et al. (2023) for others.
* With L_t >= 0 the bracket is >= -c_t, c_t = G_t / ((N - t) min g over the images left), known before the draw. Its
  quotient x_t by c_t is >= -1, so that by Fan, Grama & Liu (EJP 2015), for lambda in [0, 1),

      exp(lambda * sum x_t - psi(lambda) * sum x_t^2),    psi(lambda) = -log(1 - lambda) - lambda,

  is a nonnegative supermartingale, and so is its mean over several lambda. Where L_t < 0 nothing is bet: x_t = 0.
* By Ville's inequality it ever reaches 1 / delta with probability at most delta. So the best arm is ever dropped with
  probability at most delta, however many arms there are, however alike, and whenever one looks.

An arm also leaves when the images left cannot make up what it is behind, which is certain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pgnas.bayes._image_order import WEIGHT_FLOOR
from pgnas.bayes._rule import Verdict, View

BETS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Values of lambda; arms that disagree on a share v of n images want sqrt(2 log(1 / delta) / (v n))."""

REFERENCE = 4
"""Leading arms whose mean is the reference. More have less noise and a lower mean; replays were flat from 2 to 8."""

GROWTH = 1.15
"""A stage ends when the images seen have grown by this factor: each stage builds every network again."""

ELIMINATING = 0.75
"""Share of delta for the eliminations where epsilon > 0; the rest is for stopping early."""


def increments(reference: Tensor, block: Tensor, lead: Tensor, weights: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Sums of x_t and x_t^2 over one stage.

    Args:
        reference: Scores of the reference, shape (B,).
        block: Scores of the arms, shape (S, B).
        lead: By how much the reference is ahead of each arm before the stage, in summed scores, shape (S,).
        weights: Weights of all images in the order drawn, shape (N,).
        start: Images seen before the stage.

    Returns:
        Two tensors (S,), float64.
    """
    images, stop = len(weights), start + block.shape[1]
    left = images - torch.arange(start, stop)
    mean_left = weights.flip(0).cumsum(0).flip(0)[start:stop] / left
    least_left = weights.flip(0).cummin(0).values.flip(0)[start:stop]
    difference = reference - block
    ahead = lead.to(block.dtype)[:, None] + difference.cumsum(1) - difference
    x = difference * (mean_left / weights[start:stop]).to(block.dtype) + ahead / left
    x = x * (least_left / mean_left).to(block.dtype) * (ahead >= 0)
    return x.sum(1, dtype=torch.float64), x.square().sum(1, dtype=torch.float64)


def log_wealth(sums: Tensor, squares: Tensor) -> Tensor:
    """Log of the mean over `BETS` of exp(lambda sum x - psi(lambda) sum x^2), shape (S,)."""
    bets = torch.tensor(BETS, dtype=torch.float64)
    psi = -torch.log1p(-bets) - bets
    return torch.logsumexp(sums[:, None] * bets - squares[:, None] * psi, 1) - math.log(len(BETS))


@dataclass(frozen=True)
class Elimination:
    """The rule.

    With ``epsilon`` > 0 the race may also stop while several are left. Its winner is then the leader w of the time; for
    every other survivor i the hypothesis "i is ahead of w by more than epsilon" was refuted by bets against w alone,
    begun when w took the lead. `ELIMINATING` of delta pays for the eliminations; of the rest r, the k-th leader has
    r / (k (k + 1)).

    Attributes:
        delta: Error probability.
        epsilon: What the winner may be behind the best, in score.
        batch: Images are asked for in multiples of this many.
        pilot: Arms scored on all images beforehand.
    """

    delta: float
    epsilon: float
    batch: int
    pilot: int

    @property
    def groups(self) -> int:
        """One: arms are compared image by image."""
        return 1

    @property
    def floor(self) -> float:
        """As usual: what an image may bet shrinks with it."""
        return WEIGHT_FLOOR

    @property
    def error(self) -> float | None:
        """Delta."""
        return self.delta

    @property
    def statement(self) -> str:
        """What is known about the winner."""
        which = f"within {self.epsilon:g} of the best" if self.epsilon else "the best"
        return f"of all candidates scored on all images, the winner would be {which}"

    @property
    def facts(self) -> int:
        """None."""
        return 0

    def learn(self, pilot: Tensor, weights: Tensor) -> Tensor:
        """Nothing: the guarantee must not depend on it."""
        return torch.empty(0, dtype=torch.float64)

    def memory(self, arms: int) -> tuple[Tensor, Tensor]:
        """Evidence: sums of x and x^2 against the reference, then against the leader, and how often those refuted.

        Memory: the leader and how many leaders there have been.
        """
        return torch.zeros(arms, 5, dtype=torch.float64), torch.tensor([0, 0])

    def stop(self, stage: int, seen: int, images: int) -> int:
        """A multiple of the batch, `GROWTH` times what has been seen."""
        grown = math.floor(seen * GROWTH / self.batch) * self.batch
        return min(images, max(seen + self.batch, grown))

    def keep(self, scores: Tensor) -> Tensor:
        """All scores: the reference of one arm is the score of others."""
        return scores

    def total(self, block: Tensor) -> Tensor:
        """Sums (A,)."""
        return block.sum(1, dtype=torch.float64)

    def judge(self, view: View) -> Verdict:
        """Drop whom the data, or arithmetic, refute."""
        evidence = view.evidence.clone()
        top = torch.argsort(view.before, descending=True, stable=True)
        # Nobody leads before the first image: the mean of all arms is no better than the best one, too.
        top = top[:REFERENCE] if view.start else top
        lead = view.before[top].mean() - view.before
        gained, squared = increments(view.block[top].mean(0), view.block, lead, view.weights, view.start)
        evidence[:, 0] += gained
        evidence[:, 1] += squared
        delta = self.delta * (ELIMINATING if self.epsilon else 1.0)
        refuted = log_wealth(evidence[:, 0], evidence[:, 1]) >= -math.log(delta)
        refuted |= view.sums.max() - view.sums > len(view.weights) - view.stop
        refuted[view.sums.argmax()] &= not bool(refuted.all())
        if not self.epsilon:
            return Verdict(~refuted, evidence, view.memory)
        return self._near_enough(view, evidence, ~refuted)

    def _near_enough(self, view: View, evidence: Tensor, stays: Tensor) -> Verdict:
        """Bet against the leader, elect another if it fell behind, and stop if none left can be epsilon ahead."""
        images = len(view.weights)
        leader, leaders = view.memory.tolist()
        row = int(torch.searchsorted(view.arms, leader))  # the leader is alive, or there is none yet
        if leaders:
            lead = view.before[row] - view.before + self.epsilon * images
            gained, squared = increments(view.block[row], view.block, lead, view.weights, view.start)
            evidence[:, 2] += gained
            evidence[:, 3] += squared
            level = math.log(leaders * (leaders + 1) / ((1 - ELIMINATING) * self.delta))
            certain = view.sums[row] - view.sums + self.epsilon * images >= images - view.stop
            evidence[:, 4] += (log_wealth(evidence[:, 2], evidence[:, 3]) >= level) | certain
        others = stays.index_fill(0, torch.tensor([row]), False)
        if leaders and stays[row] and bool((evidence[others, 4] > 0).all()):
            return Verdict(stays, evidence, view.memory, row)
        best = int(torch.where(stays, view.sums, -torch.inf).argmax())
        behind = view.sums[best] - view.sums[row] > 0.5 * self.epsilon * view.stop
        if leaders and stays[row] and not behind:
            return Verdict(stays, evidence, view.memory)
        evidence[:, 2:5] = 0
        return Verdict(stays, evidence, torch.tensor([int(view.arms[best]), leaders + 1]))
