"""Draw architectures from the posterior, keep them under the caps, and rank them without fine-tuning (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from pgnas.architecture import Architecture
from pgnas.nn import Counts, Supernet, extract_small
from pgnas.nn.cost import CostName
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
    """

    architecture: Architecture
    counts: Counts
    is_mode: bool
    repaired: int
    score: Score | None = None

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
        )


Caps = Mapping[CostName, int]
"""Cost to its cap, as a count."""


def draw(supernet: Supernet, count: int, caps: Caps, *, generator: torch.Generator) -> list[Candidate]:
    """The posterior's mode and ``count`` - 1 samples, distinct and under the caps.

    A sample over a cap, measured on its extracted network, is repaired: its least probable units are closed until it
    fits. A posterior that has decided nearly everything has few distinct samples; then fewer are returned.
    """
    found: dict[str, Candidate] = {}
    first = _under_caps(supernet, supernet.mode(), caps, is_mode=True)
    found[first.architecture.digest] = first
    seen: set[str] = set()
    for _ in range(20 * count):
        if len(found) >= count:
            break
        architecture = supernet.sample(generator=generator)
        if architecture.digest in seen:
            continue
        seen.add(architecture.digest)
        candidate = _under_caps(supernet, architecture, caps, is_mode=False)
        found.setdefault(candidate.architecture.digest, candidate)
    return list(found.values())


def _under_caps(supernet: Supernet, architecture: Architecture, caps: Caps, *, is_mode: bool) -> Candidate:
    counts = supernet.count(architecture)
    if _fits(counts, caps):
        return Candidate(architecture, counts, is_mode, 0)
    closed, architecture = repair(supernet, architecture, caps)
    return Candidate(architecture, supernet.count(architecture), is_mode, closed)


def _fits(counts: Counts, caps: Caps) -> bool:
    return all(getattr(counts, kind) <= cap for kind, cap in caps.items())


def repair(supernet: Supernet, architecture: Architecture, caps: Caps) -> tuple[int, Architecture]:
    """Close as few units as needed to meet the caps, the least probable first.

    Returns:
        How many were closed, and the architecture.
    """
    kept = supernet.gates.mask(architecture).cpu()
    logits = supernet.gates.logits().detach().cpu()
    order = torch.where(kept, logits, torch.inf).argsort(stable=True)[: int(kept.sum())]

    def closing(count: int) -> Architecture:
        remaining = kept.clone()
        remaining[order[:count]] = False
        return supernet.gates.architecture(remaining)

    low, high = 0, len(order)  # low does not fit, high does (nothing kept costs nothing that a gate could save)
    while high - low > 1:
        middle = (low + high) // 2
        if _fits(supernet.count(closing(middle)), caps):
            high = middle
        else:
            low = middle
    return high, closing(high)


def rank(
    supernet: Supernet, candidates: Sequence[Candidate], score: Callable[[nn.Module], Score]
) -> Iterator[Candidate]:
    """Score candidates one after another, each as its extracted network with the supernet's weights."""
    for candidate in candidates:
        yield replace(candidate, score=score(extract_small(supernet, candidate.architecture).module))


def best(candidates: Sequence[Candidate]) -> Candidate:
    """The highest score; among equals the lowest loss, then the fewest multiply-adds."""

    def key(candidate: Candidate) -> tuple[float, float, int]:
        assert candidate.score is not None
        return -candidate.score.metric, candidate.score.loss, candidate.counts.macs

    return min(candidates, key=key)
