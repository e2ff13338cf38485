"""Racing replayed on a matrix of right and wrong answers: does it end at the exhaustive winner, for how many passes?

    python bench/racing.py                          # simulated candidates, standard deviations of 0.3, 1 and 3 points
    python bench/racing.py --matrix correct.npz     # of bench/correctness.py: "correct" (candidates x images), "units"

Simulated candidates answer by a probit model: quality of the candidate + difficulty of the image + what a candidate is
better at than others (six factors, which are its features) + chance. The difficulty's share is set so that two
candidates disagree on a stated share of the images; the standard deviation is that of the candidates' accuracies on
these images. A loaded matrix with fewer rows than --candidates is extended: a new candidate answers as a row does, on a
fifth of the images as another, and has their features in the same proportion.

"within 0.1" counts repetitions (other candidates, other order of images) whose winner is at most 0.1 point behind the
exhaustive winner. "Bernstein" is the classical race for comparison: every pair with the leader bounded by Bardenet &
Maillard's empirical Bernstein-Serfling inequality, delta split over candidates and checks.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pgnas.bayes import Race, RaceResult, elimination, halving

DISAGREEMENT = {0.003: 0.05, 0.01: 0.1, 0.03: 0.2}
"""Standard deviation of simulated candidates to the share of images on which two of them disagree."""

TENTH = 0.001 + 1e-9
OWN_STRENGTHS = 0.5
FACTORS = 6
OTHER = 0.2
"""Share of the images on which a mixed candidate answers as its second parent."""


class Answers(NamedTuple):
    """Right answers (images, arms), bool, and the arms' features (arms, F)."""

    correct: Tensor
    features: Tensor


def simulate(arms: int, images: int, spread: float, generator: torch.Generator, accuracy: float = 0.72) -> Answers:
    """Candidates by a probit model."""
    disagreement = DISAGREEMENT[spread]
    center = float(torch.special.ndtri(torch.tensor(accuracy, dtype=torch.float64)))
    shared = _difficulty_share(center, disagreement)
    own = 1 - shared
    slope = math.exp(-(center**2) / 2) / math.sqrt(2 * math.pi)
    quality_variance = max(0.0, spread**2 - disagreement / 2 / images)  # chance alone makes the rest of the spread
    quality = center + torch.randn(arms, generator=generator) * math.sqrt(quality_variance) / slope
    strength = torch.randn(FACTORS, arms, generator=generator) * math.sqrt(OWN_STRENGTHS * own / FACTORS)
    difficulty = torch.randn(images, 1, generator=generator) * math.sqrt(shared)
    topic = torch.randn(images, FACTORS, generator=generator)
    correct = torch.empty(images, arms, dtype=torch.bool)
    for rows in torch.arange(images).split(500):
        latent = (quality + difficulty[rows] + topic[rows] @ strength) / math.sqrt((1 - OWN_STRENGTHS) * own)
        correct[rows] = torch.rand(latent.shape, generator=generator) < torch.special.ndtr(latent)
    return Answers(correct, strength.T)


def _difficulty_share(center: float, disagreement: float) -> float:
    """Share of the latent variance that all candidates have in common."""
    nodes = torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        p = torch.special.ndtr((center + math.sqrt(middle) * nodes) / math.sqrt(1 - middle))
        low, high = (middle, high) if (2 * p * (1 - p)).mean() > disagreement else (low, middle)
    return low


def load(path: Path) -> Answers:
    """What bench/correctness.py kept."""
    with np.load(path, allow_pickle=False) as archive:
        correct, units = (torch.from_numpy(archive[name]) for name in ("correct", "units"))
    return Answers(correct.bool().T.contiguous(), units.float())


def extend(known: Answers, arms: int, generator: torch.Generator) -> Answers:
    """The candidates known and new ones mixed of them, or a random part of them."""
    correct, features = known
    images, have = correct.shape
    if have >= arms:
        chosen = torch.randperm(have, generator=generator)[:arms]
        return Answers(correct[:, chosen], features[chosen])
    first, second = torch.randint(have, (2, arms - have), generator=generator)
    other = torch.rand(images, arms - have, generator=generator) < OTHER
    mixed = torch.where(other, correct[:, second], correct[:, first])
    between = (1 - OTHER) * features[first] + OTHER * features[second]
    return Answers(torch.cat([correct, mixed], 1), torch.cat([features, between]))


def replay(race: Race, correct: Tensor) -> RaceResult:
    """Run a race on answers (images, arms)."""
    while (request := race.request()) is not None:
        race = race.observe(correct[request.images][:, request.arms].T)
    return race.result()


def bernstein(correct: Tensor, delta: float, generator: torch.Generator, batch: int = 25) -> tuple[int, float]:
    """Winner and share of passes of the classical race."""
    images, arms = correct.shape
    correct = correct[torch.randperm(images, generator=generator)]
    checks = [0]
    while checks[-1] < images:
        checks.append(min(images, max(checks[-1] + batch, math.floor(checks[-1] * 1.15 / batch) * batch)))
    log_term = math.log(5 * (arms - 1) * len(checks) / delta)
    left, passes, sums, disagree = torch.arange(arms), 0, torch.zeros(arms), torch.zeros(arms)
    for start, n in pairwise(checks):
        passes += len(left) * (n - start)
        seen = correct[:n, left]
        sums = seen.sum(0, dtype=torch.float64)
        if n == images:
            break
        leader = int(sums.argmax())
        disagree = (seen ^ seen[:, leader : leader + 1]).sum(0, dtype=torch.float64) / n
        mean = (sums[leader] - sums) / n
        rho = 1 - (n - 1) / images if 2 * n <= images else (1 - n / images) * (1 + 1 / n)
        deviation = (disagree - mean.square()).clamp(min=0).sqrt()
        bound = deviation * math.sqrt(2 * rho * log_term / n) + 2 * (7 / 3 + 3 / math.sqrt(2)) * log_term / n
        stays = mean <= bound
        left, sums = left[stays], sums[stays]
        if len(left) == 1:
            break
    return int(left[sums.argmax()]), passes / (images * arms)


def report(name: str, matrices: Callable[[torch.Generator], Answers], arguments: argparse.Namespace) -> None:
    """One row of the table."""
    regrets: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    spread = disagreement = 0.0
    for seed in range(arguments.repetitions):
        generator = torch.Generator().manual_seed(seed)
        if seed % arguments.orders == 0:
            correct, features = matrices(generator)
            means = correct.sum(0, dtype=torch.float64) / len(correct)
            spread = float(means.std())
            half = min(300, correct.shape[1] // 2)
            disagreement = float((correct[:, :half] ^ correct[:, half : 2 * half]).float().mean())
        size = (correct.shape[1], len(correct))
        races = {
            "halving": halving(*size, budget=arguments.budget, generator=generator, features=features),
            "halving, no features": halving(*size, budget=arguments.budget, generator=generator),
            "halving, no pilot": halving(*size, budget=arguments.budget, generator=generator, pilot=0),
            "elimination": elimination(*size, delta=arguments.delta, generator=generator),
        }
        if seed % arguments.orders == 0:
            races["elimination, no pilot"] = elimination(*size, delta=arguments.delta, generator=generator, pilot=0)
            winner, share = bernstein(correct, arguments.delta, generator)
            regrets.setdefault("Bernstein", []).append(float(means.max() - means[winner]))
            shares.setdefault("Bernstein", []).append(share)
        for kind, race in races.items():
            result = replay(race, correct)
            regrets.setdefault(kind, []).append(float(means.max() - means[result.winner]))
            shares.setdefault(kind, []).append(result.share)
    for kind, values in regrets.items():
        near, exact = sum(v <= TENTH for v in values), sum(v <= 1e-9 for v in values)
        mean = sum(shares[kind]) / len(values)
        print(
            f"| {name} | {100 * spread:.2f} | {disagreement:.1%} | {kind} | {near} of {len(values)} "
            f"| {exact} of {len(values)} | {100 * sum(values) / len(values):.3f} | {mean:.1%} "
            f"| {min(shares[kind]):.1%} - {max(shares[kind]):.1%} |",
            flush=True,
        )


def hard_case(arguments: argparse.Namespace) -> None:
    """How often elimination errs where it is likeliest to: the best candidate is ahead by one image."""
    images, repetitions = 400, arguments.hard
    for arms, pilot in ((2, 0), (20, 0), (20, 16)):
        for delta in (0.05, 0.2, 0.5):
            errors, share = 0, 0.0
            for seed in range(repetitions):
                generator = torch.Generator().manual_seed(seed)
                correct = twins(images, generator) if arms == 2 else ties(arms, images, generator)
                race = elimination(arms, images, delta=delta, batch=5, pilot=pilot, generator=generator)
                result = replay(race, correct)
                errors += int(correct[:, result.winner].sum()) < int(correct.sum(0).max())
                share += result.share / repetitions
            print(f"| {arms} | {pilot} | {errors} of {repetitions} | {delta:.0%} | {share:.1%} |", flush=True)


def twins(images: int, generator: torch.Generator) -> Tensor:
    """Two candidates of which one is right where the other is wrong, (images, 2): the largest variance there is."""
    order = torch.randperm(images, generator=generator)
    first = order < images // 2 + 1
    return torch.stack([first, ~first], 1)


def ties(arms: int, images: int, generator: torch.Generator) -> Tensor:
    """Candidates right on 280 of 400 images, and one on 281, each its own; half of the repetitions nearly the same."""
    alike = 0.05 if torch.rand(1, generator=generator) < 0.5 else 5.0
    level = torch.rand(images, 1, generator=generator) + alike * torch.rand(images, arms, generator=generator)
    right = torch.full((arms,), int(0.7 * images)).index_fill(0, torch.randint(arms, (1,), generator=generator), 0)
    right[right == 0] = int(0.7 * images) + 1
    return level.argsort(0).argsort(0) < right


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrix", type=Path)
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--orders", type=int, default=5, help="repetitions on one set of candidates")
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--delta", type=float, default=0.05)
    parser.add_argument("--hard", type=int, default=200, help="repetitions of the hard case")
    arguments = parser.parse_args()
    print("| candidates | sd, points | disagree | race | within 0.1 | winner | regret, points | passes | from - to |")
    print("|---|---|---|---|---|---|---|---|---|")
    if arguments.matrix is not None:
        loaded = load(arguments.matrix)
        report(arguments.matrix.stem, lambda generator: extend(loaded, arguments.candidates, generator), arguments)
    else:
        for spread in DISAGREEMENT:

            def matrices(generator: torch.Generator, spread: float = spread) -> Answers:
                return simulate(arguments.candidates, arguments.images, spread, generator)

            report("simulated", matrices, arguments)
    print("\n| candidates | pilot | elimination erred | stated | passes |\n|---|---|---|---|---|")
    hard_case(arguments)


if __name__ == "__main__":
    main()
