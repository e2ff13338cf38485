"""Draw architectures from the posterior, keep them under the caps, and rank them without fine-tuning (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pgnas.architecture import Architecture
from pgnas.nn import Counts, Supernet, extract_small
from pgnas.nn.cost import CostName
from pgnas.nn.liveness import Plan
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


SELECTION_WORTH = 0.75
"""A reader that keeps this share of a shared value's channels or more is cheaper without picking them from it.

Measured on a CPU (multi-branch ResNet, width 32, training): picking cost more than half of the whole step.
"""


def draw(
    supernet: Supernet, count: int, caps: Caps, *, generator: torch.Generator, avoid_selections: bool = False
) -> list[Candidate]:
    """The posterior's mode and ``count`` - 1 samples, distinct and under the caps.

    A sample over a cap, measured on its extracted network, is repaired: its least probable units are closed until it
    fits. A posterior that has decided nearly everything has few distinct samples; then fewer are returned.

    Args:
        supernet: The supernet.
        count: C.
        caps: The caps.
        generator: Draws the samples.
        avoid_selections: Let readers that keep nearly all of a shared value read all of it (:func:`widen_readers`).
    """

    def fitted(architecture: Architecture, *, is_mode: bool) -> Candidate:
        wide = widen_readers(supernet, architecture) if avoid_selections else architecture
        opened = supernet.gates.mask(wide) & ~supernet.gates.mask(architecture)
        return _under_caps(supernet, wide, caps, opened=opened, is_mode=is_mode)

    found: dict[str, Candidate] = {}
    first = fitted(supernet.mode(), is_mode=True)
    found[first.architecture.digest] = first
    seen: set[str] = set()
    for _ in range(20 * count):
        if len(found) >= count:
            break
        architecture = supernet.sample(generator=generator)
        if architecture.digest in seen:
            continue
        seen.add(architecture.digest)
        candidate = fitted(architecture, is_mode=False)
        found.setdefault(candidate.architecture.digest, candidate)
    return list(found.values())


def widen_readers(supernet: Supernet, architecture: Architecture) -> Architecture:
    """Open the closed units of layers that would read most of a shared value's channels, so that they read all.

    Where several layers read one value and keep different channels, each must pick its own from it; picking a large
    share costs more than the multiply-adds that it saves.
    """
    plan = supernet.plan(architecture)
    gates = {name: part.clone() for name, part in supernet.gates.split(supernet.gates.mask(architecture).cpu()).items()}
    for site in supernet.space.sites:
        there = _available(supernet, plan, site.source)
        if not plan.reads[site.node] or not there.any():
            continue
        if SELECTION_WORTH <= float(plan.reads[site.node][0].sum() / there.sum()) < 1:
            gates[site.gate][site.unit_of_channel[there]] = True
    return supernet.gates.architecture(torch.cat(list(gates.values())))


def _available(supernet: Supernet, plan: Plan, name: str) -> Tensor:
    """Channels of a value that exist where it was made, bool (channels,): a reader that wants fewer must pick them."""
    graph = supernet.graph
    parts = []
    for run in graph.sources(name):
        kept = plan.kept(run.origin)
        if run.channels % len(kept):  # a part of what was made
            return torch.zeros(graph.value(name).channels, dtype=torch.bool)
        parts.append(kept.repeat_interleave(run.channels // len(kept)))
    return torch.cat(parts)


def _under_caps(
    supernet: Supernet, architecture: Architecture, caps: Caps, *, opened: Tensor, is_mode: bool
) -> Candidate:
    counts = supernet.count(architecture)
    if _fits(counts, caps):
        return Candidate(architecture, counts, is_mode, 0)
    closed, architecture = repair(supernet, architecture, caps, last=opened)
    return Candidate(architecture, supernet.count(architecture), is_mode, closed)


def _fits(counts: Counts, caps: Caps) -> bool:
    return all(getattr(counts, kind) <= cap for kind, cap in caps.items())


def repair(
    supernet: Supernet, architecture: Architecture, caps: Caps, *, last: Tensor | None = None
) -> tuple[int, Architecture]:
    """Close as few units as needed to meet the caps, the least probable first.

    Args:
        supernet: The supernet.
        architecture: What does not fit.
        caps: The caps.
        last: Units, bool (U,), to be closed only when all others are.

    Returns:
        How many were closed, and the architecture.
    """
    kept = supernet.gates.mask(architecture).cpu()
    logits = supernet.gates.logits().detach().cpu()
    if last is not None:
        logits = torch.where(last.cpu(), logits + 1e6, logits)
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
