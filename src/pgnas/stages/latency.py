"""The latency cap, measured: predictions choose the candidates, the clock has the last word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pgnas.errors import ConfigError, RunError
from pgnas.nn import Supernet, extract_small
from pgnas.nn.timing import latency
from pgnas.stages.candidates import Candidate, Caps
from pgnas.stages.fitting import Fitter
from pgnas.stages.recipe import Recipe
from pgnas.stages.training import Score

ATTEMPTS = 8
"""How often the predicted cap is tightened before giving up."""
MARGIN = 0.98
"""Each tightening aims a little below the cap, since clocks vary."""


@dataclass(frozen=True)
class Measured:
    """A candidate that meets the latency cap by the clock.

    Attributes:
        candidate: The candidate, with its score.
        seconds: Measured seconds a batch of its extracted network.
        full_seconds: Those of the full network, measured beside it.
        attempts: How many networks were built and timed.
    """

    candidate: Candidate
    seconds: float
    full_seconds: float
    attempts: int


def meet_latency(
    recipe: Recipe,
    supernet: Supernet,
    winner: Candidate,
    score: Callable[[nn.Module], Score],
    example: Tensor,
    *,
    recalibrated: bool = False,
) -> Measured:
    """Time the winner's network; while it is over the cap, close more of its units and score it again.

    Args:
        recipe: How the search is done; it caps latency.
        supernet: The supernet.
        winner: The best candidate.
        score: Scores an extracted network.
        example: One example or more, normalised, (B, C, ...).
        recalibrated: Whether ``score`` re-estimates BatchNorm first.

    Raises:
        RunError: No network within the cap was found.
    """
    inputs = timed_inputs(recipe, example)
    candidate, caps = winner, dict(recipe.caps)
    cap = recipe.caps["latency"]
    full = extract_small(supernet, supernet.open()).module
    for attempt in range(1, ATTEMPTS + 1):
        module = extract_small(supernet, candidate.architecture).module
        seconds, full_seconds = latency(module, inputs), latency(full, inputs)
        # A share is one of what the full network takes now, not of what it took when the costs were measured.
        allowed = cap * full_seconds / recipe.full_costs["latency"] if recipe.latency_is_relative else cap
        if seconds <= allowed:
            return Measured(candidate, seconds, full_seconds, attempt)
        predicted = candidate.latency or caps["latency"]
        caps["latency"] = min(caps["latency"], predicted) * allowed / seconds * MARGIN
        try:
            candidate = _fit(recipe, supernet, winner, caps)
        except ConfigError:  # nothing that cheap reads its input
            break
        small = extract_small(supernet, candidate.architecture, re_estimated=recalibrated)
        candidate = replace(candidate, score=score(small.module))
    raise RunError(
        "--max-latency",
        f"must be met by the found network within {ATTEMPTS} attempts, and by one that reads its input",
        value=f"{1e3 * seconds:.3g} ms at the last, {1e3 * allowed:.3g} ms allowed",
        remedy="allow more, or search at a lower --max-macs",
    )


def _fit(recipe: Recipe, supernet: Supernet, winner: Candidate, caps: Caps) -> Candidate:
    return Fitter(supernet, caps, recipe.shaper(supernet)).fit(winner.architecture, is_mode=winner.is_mode)


def timed_inputs(recipe: Recipe, example: Tensor) -> tuple[Tensor, ...]:
    """The batch whose latency matters, on the device: so many examples, by repetition."""
    batch = example[torch.arange(recipe.config.latency_batch) % len(example)].contiguous()
    inputs, _ = recipe.engine.batch((batch, 0))
    return inputs
