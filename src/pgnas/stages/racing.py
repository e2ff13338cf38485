"""Rank candidates by a race: far fewer passes than every candidate on every held-out image."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pgnas.bayes.racing import Race, RaceResult, elimination, exhaustive, halving
from pgnas.config import Ranking
from pgnas.errors import RunFolderError
from pgnas.nn import Supernet, extract_small
from pgnas.processes import Processes
from pgnas.stages.candidates import Candidate
from pgnas.stages.training import Judge, Score

State = dict[str, Tensor]
PART = 32
"""Candidates scored between two saved states of a race."""
_LOSSES, _CALLS = "losses", "calls"


@dataclass(frozen=True)
class Raced:
    """The outcome of a race.

    Attributes:
        candidates: Those that were drawn, each with its score on the images that it has seen.
        result: What the race tells.
        seen: Images that each was scored on, (C,).
        calls: How often each was extracted and scored, (C,).
    """

    candidates: tuple[Candidate, ...]
    result: RaceResult
    seen: Tensor
    calls: Tensor

    @property
    def winner(self) -> Candidate:
        """The candidate chosen; it has seen all images."""
        return self.candidates[self.result.winner]

    @property
    def best_first(self) -> list[Candidate]:
        """All candidates: the winner, which has seen all images, and then who stayed longer before the others.

        Not by their scores: those of an early sample that was scored on all images say nothing of who left when.
        """
        return [self.candidates[arm] for arm in self.result.order.tolist()]

    def facts(self) -> dict[str, Any]:
        """What the run's result says of the race."""
        second = self.best_first[1:2]
        return {
            **({"runner_up": second[0].architecture.digest} if second else {}),
            "passes": self.result.passes,
            "passes_share": self.result.share,
            "error": self.result.error,
            "statement": self.result.statement,
        }


def make_race(
    ranking: Ranking, candidates: Sequence[Candidate], images: int, *, budget: float, error: float, seed: int
) -> Race:
    """The race that the settings name.

    Args:
        ranking: How.
        candidates: The arms; halving judges those by each other that keep the same units.
        images: N.
        budget: Of halving: share of the C x N passes.
        error: Of elimination: probability of choosing wrongly.
        seed: Draws the order of the images.

    Raises:
        InputError: The budget does not suffice for so many candidates.
    """
    generator, count = torch.Generator().manual_seed(seed), len(candidates)
    races: dict[Ranking, Callable[[], Race]] = {
        "exhaustive": lambda: exhaustive(count, images, generator=generator),
        "halving": lambda: halving(count, images, budget=budget, generator=generator, features=units_kept(candidates)),
        "elimination": lambda: elimination(count, images, delta=error, generator=generator),
    }
    return races[ranking]()


def units_kept(candidates: Sequence[Candidate]) -> Tensor:
    """Which units each candidate keeps, bool (C, U), gate after gate."""
    sizes = candidates[0].architecture.sizes
    first = dict(zip(sizes, itertools.accumulate(sizes.values(), initial=0), strict=False))
    kept = torch.zeros(len(candidates), sum(sizes.values()), dtype=torch.bool)
    for row, candidate in zip(kept, candidates, strict=True):
        units = candidate.architecture.kept
        row[[first[name] + unit for name in sizes for unit in units[name]]] = True
    return kept


def run_race(
    race: Race,
    supernet: Supernet,
    candidates: Sequence[Candidate],
    judge: Judge,
    *,
    recalibrated: bool = False,
    processes: Processes,
    state: State | None = None,
    keep: Callable[[State], None] = lambda state: None,
    progress: Callable[[int], None] = lambda passes: None,
) -> Raced:
    """Run a race to its end, each candidate as its extracted network with the supernet's weights.

    Args:
        race: At its beginning.
        supernet: The supernet.
        candidates: The arms.
        judge: Scores an extracted network on some held-out images.
        recalibrated: Whether that re-estimates BatchNorm first.
        processes: Those that share the work.
        state: Where a killed race stood.
        keep: Is given the state every now and then.
        progress: Is told the passes so far.

    Raises:
        RunFolderError: The state is of another race.
    """
    losses = torch.zeros(len(candidates), 2, dtype=torch.float64)  # summed loss and images
    calls = torch.zeros(len(candidates), dtype=torch.long)
    if state is not None:
        race, losses, calls = _resumed(race, state, losses, calls)
    turn, turns = processes.turn
    while (request := race.request(limit=PART * turns)) is not None:
        mine: list[tuple[list[float], float]] = []
        with processes.together():
            for arm in request.shard(turn, turns).arms.tolist():
                small = extract_small(supernet, candidates[arm].architecture, re_estimated=recalibrated)
                scores, mean_loss = judge(small.module, request.images)
                mine.append((scores.tolist(), mean_loss))
        told = [row for rows in processes.gather(mine) for row in rows]
        seen = len(request.images)
        calls[request.arms] += 1
        losses[request.arms] += torch.tensor([[mean * seen, seen] for _, mean in told], dtype=torch.float64)
        stage = int(race.standing.position[1])
        race = race.observe(torch.tensor([scores for scores, _ in told]))
        if turns > 1 and int(race.standing.position[1]) != stage:  # who stays must not hang on a process's rounding
            race = race.resume(safetensors.torch.load(processes.send(safetensors.torch.save(race.state()))))
        keep({**race.state(), _LOSSES: losses, _CALLS: calls})
        progress(int(race.standing.position[3]))
    return Raced(_scored(candidates, race, losses), race.result(), losses[:, 1], calls)


def _resumed(race: Race, state: Mapping[str, Tensor], losses: Tensor, calls: Tensor) -> tuple[Race, Tensor, Tensor]:
    rest = {name: value for name, value in state.items() if name not in (_LOSSES, _CALLS)}
    kept = state.get(_LOSSES)
    if kept is None or kept.shape != losses.shape:
        raise RunFolderError("race.safetensors", "must be of this run's race", remedy="remove it to race again")
    return race.resume(rest), kept.clone(), state.get(_CALLS, calls).clone()


def _scored(candidates: Sequence[Candidate], race: Race, losses: Tensor) -> tuple[Candidate, ...]:
    result, pilot = race.result(), race.standing.pilot
    images = race.standing.weights.numel()
    rows = []
    for arm, candidate in enumerate(candidates):
        mean, count = float(result.means[arm]), int(result.counts[arm])
        if arm < len(pilot):  # it has seen all images before the race
            mean, count = float(pilot[arm]), images
        loss = float(losses[arm, 0] / losses[arm, 1].clamp(min=1))
        rows.append(replace(candidate, score=Score(mean, loss, count)))
    return tuple(rows)
