"""Candidates: architectures drawn from the posterior, ranked without fine-tuning (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from pgnas.architecture import Architecture
from pgnas.config import RankBy
from pgnas.nn import Counts, Supernet, extract_small
from pgnas.nn.cost import CostName
from pgnas.processes import Processes
from pgnas.stages.training import Score


@dataclass(frozen=True)
class Candidate:
    """One drawn architecture and what it achieves on held-out data.

    Attributes:
        architecture: The kept slices.
        counts: Parameters and multiply-adds of its extracted network.
        is_mode: Whether it is the posterior's most probable architecture (brought under the caps).
        repaired: How many units were closed to bring it under the caps.
        score: Its score; None before it is ranked.
        latency: Predicted seconds a batch of its extracted network, if latency is capped.
    """

    architecture: Architecture
    counts: Counts
    is_mode: bool
    repaired: int
    score: Score | None = None
    latency: float | None = None

    def to_row(self) -> dict[str, Any]:
        """A JSON row."""
        assert self.score is not None
        return {
            "digest": self.architecture.digest,
            **asdict(self.counts),
            "accuracy": self.score.metric,
            "loss": self.score.loss,
            "count": self.score.count,
            "is_mode": self.is_mode,
            "repaired": self.repaired,
            "architecture": self.architecture.to_json(),
            **({} if self.latency is None else {"latency": self.latency}),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Candidate:
        """The inverse of :meth:`to_row`."""
        return cls(
            Architecture.from_json(row["architecture"]),
            Counts(row["params"], row["macs"]),
            row["is_mode"],
            row["repaired"],
            Score(row["accuracy"], row["loss"], row["count"]),
            row.get("latency"),
        )


Caps = Mapping[CostName, float]
"""Cost to its cap: a count, or seconds a batch."""


def rank(
    supernet: Supernet,
    candidates: Sequence[Candidate],
    score: Callable[[nn.Module], Score],
    *,
    recalibrated: bool = False,
    processes: Processes | None = None,
) -> Iterator[Candidate]:
    """Score candidates in their order, each as its extracted network with the supernet's weights.

    Args:
        supernet: The supernet.
        candidates: The candidates.
        score: Scores an extracted network.
        recalibrated: Whether that re-estimates BatchNorm first.
        processes: Those that score candidates at the same time, one each; None: this one alone.
    """
    processes = processes or Processes()
    turn, turns = processes.turn
    for start in range(0, len(candidates), turns):
        row: dict[str, Any] | None = None
        with processes.together():
            if start + turn < len(candidates):
                small = extract_small(supernet, candidates[start + turn].architecture, re_estimated=recalibrated)
                row = asdict(score(small.module))
        for candidate, values in zip(candidates[start:], processes.gather(row), strict=False):
            yield replace(candidate, score=Score(**values))


def best(candidates: Sequence[Candidate], *, by: RankBy = "accuracy") -> Candidate:
    """The highest score; among equals the lowest loss (by loss: the other way round), then the fewest multiply-adds."""
    return ordered(candidates, by=by)[0]


def ordered(candidates: Sequence[Candidate], *, by: RankBy = "accuracy") -> list[Candidate]:
    """Best first; those that a race dropped early, whose scores are of fewer images, after those that saw more."""

    def key(candidate: Candidate) -> tuple[float, ...]:
        score = candidate.score
        assert score is not None
        return -score.count, *worth(score, by=by), candidate.counts.macs

    return sorted(candidates, key=key)


def worth(score: Score, *, by: RankBy) -> tuple[float, float]:
    """Sorts scores of the same examples, the best first."""
    return (-score.metric, score.loss) if by == "accuracy" else (score.loss, -score.metric)
