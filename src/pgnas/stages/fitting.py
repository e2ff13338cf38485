"""Draw architectures from the posterior and bring them under the caps (Algorithm 1, line 8)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pgnas.architecture import Architecture
from pgnas.errors import ConfigError
from pgnas.nn import Counts, Supernet
from pgnas.nn.cost import CostName, count_plan
from pgnas.nn.gate import CLOSED
from pgnas.nn.shaping import Shaper
from pgnas.stages.candidates import Candidate, Caps

ALL_BUT_USED = 0.99
"""The share of a cap from which on nothing is opened again to use the rest."""


def draw(
    supernet: Supernet,
    count: int,
    caps: Caps,
    *,
    generator: torch.Generator,
    shaper: Shaper | None = None,
    with_mode: bool = True,
) -> list[Candidate]:
    """The posterior's mode and ``count`` - 1 samples, distinct and under the caps.

    A sample over a cap, as its extracted network is counted, is repaired: its least probable units are closed until it
    fits. A posterior that has decided nearly everything has few distinct samples; then fewer are returned.

    Args:
        supernet: The supernet.
        count: C.
        caps: The caps.
        generator: Draws the samples.
        shaper: Makes every candidate easy on hardware.
        with_mode: Whether the mode is among them; without it there are ``count`` samples.
    """
    fitter = Fitter(supernet, caps, shaper or Shaper(supernet))
    found: dict[str, Candidate] = {}
    if with_mode:
        first = fitter.fit(supernet.mode(), is_mode=True)
        found[first.architecture.digest] = first
    seen: set[str] = set()
    for _ in range(20 * count):
        if len(found) >= count:
            break
        architecture = supernet.sample(generator=generator)
        if architecture.digest in seen:
            continue
        seen.add(architecture.digest)
        candidate = fitter.fit(architecture)
        found.setdefault(candidate.architecture.digest, candidate)
    return list(found.values())


class Fitter:
    """Brings architectures under the caps by closing as few units as needed, the least probable first.

    Before units are closed operations are exchanged: those first whose cheaper alternatives cost the least log
    probability for what they save. Where nothing of the input would reach the output any more, a few units are kept,
    or opened, through which it does: without them a network costs nothing, and is under every cap.

    Args:
        supernet: The supernet; its keep probabilities say which units go first.
        caps: The caps.
        shaper: Shapes what remains after each closing.
    """

    def __init__(self, supernet: Supernet, caps: Caps, shaper: Shaper) -> None:
        self._supernet, self._caps, self._shaper = supernet, caps, shaper
        self._closed = 0  # by the fit before: the next sample of the same posterior needs about as many

    def fit(self, architecture: Architecture, *, is_mode: bool = False) -> Candidate:
        """The architecture, shaped and under the caps.

        Its units are closed in the order of their keep probabilities; what the shaper opens again is counted.
        """
        asked, exchanged = self._exchange(self._supernet.gates.mask(architecture).cpu())
        shaped, closed, more = self._close(asked, spared=torch.zeros_like(asked))
        counts, latency = self._costs(shaped)
        if counts.macs == 0 and self._reads_input(asked | self._free):
            for spared in self._lifelines(asked):
                shaped, closed, more = self._close(asked | spared, spared)
                if self._fits(shaped):
                    break
            closed += int((spared & ~asked).sum())
            counts, latency = self._costs(shaped)
        self._require_within(self._shares_of(counts, latency))
        architecture = self._supernet.gates.architecture(shaped)
        return Candidate(architecture, counts, is_mode, closed + exchanged + more, latency=latency)

    def _close(self, kept: Tensor, spared: Tensor) -> tuple[Tensor, int, int]:
        """Close units until the caps are met, or until only those to be spared are left.

        Args:
            kept: Units that are open, bool (U,).
            spared: Units that stay open, bool (U,).

        Returns:
            The shaped units, how many were closed, and how many options were exchanged after that.
        """
        free = self._supernet.gates.free
        logits = self._supernet.gates.logits().detach().cpu()[:free]
        can_close = (kept & ~spared)[:free]
        order = torch.where(can_close, logits, torch.inf).argsort(stable=True)[: int(can_close.sum())]

        def closing(count: int) -> Tensor:
            return self._shaper.shape(_without(kept, order[:count]))

        closed = self._closings(lambda count: self._fits(closing(count)), len(order)) if self._caps else 0
        shaped, exchanged = closing(closed), 0
        if closed == len(order) and not self._fits(shaped):  # the operations cost too much by themselves
            shaped, exchanged = self._exchange(shaped)
        if closed and (self._shaper.round_to > 1 or self._supernet.space.channels_per_gate > 1):
            shaped = self._fill(shaped, order[:closed])
            closed = int((~shaped[order[:closed]]).sum())
        return shaped, closed, exchanged

    @property
    def _free(self) -> Tensor:
        """The units that are no options of choices, bool (U,)."""
        return torch.arange(self._supernet.gates.units) < self._supernet.gates.free

    def _reads_input(self, kept: Tensor) -> bool:
        """Whether anything of the input reaches the output: without that nothing is left to compute."""
        return count_plan(self._supernet.graph, self._supernet.plan_units(kept)).macs > 0

    def _lifelines(self, kept: Tensor) -> Iterator[Tensor]:
        """Free units, bool (U,), by which an architecture reads its input and which it cannot do without.

        First those that remain if units are closed from the least probable on, then those that remain if gates that
        cost most go first.
        """
        free = self._free
        logits = self._supernet.gates.logits().detach().cpu()[: self._supernet.gates.free]
        for order in (logits.argsort(stable=True), self._dearest_first(kept | free, logits)):
            yield closed_but_reading(kept | free, order, self._reads_input) & free

    def _dearest_first(self, kept: Tensor, logits: Tensor) -> Tensor:
        """All free units (F,): those closed for good, and then by what a unit of its gate saves."""
        gates, saved = self._supernet.gates, torch.zeros(len(logits), dtype=torch.float64)
        full = count_plan(self._supernet.graph, self._supernet.plan_units(kept)).macs
        for name, first in gates.first_units().items():
            units = torch.arange(first, first + gates.sizes[name])
            if first < len(logits):
                without = count_plan(self._supernet.graph, self._supernet.plan_units(_without(kept, units))).macs
                saved[units] = (full - without) / len(units)
        saved[logits < CLOSED / 2] = math.inf
        return saved.argsort(descending=True, stable=True)

    def require_reachable(self, flag: str = "--max-{}") -> None:
        """Check that the caps leave room for a network that reads its input.

        Args:
            flag: The option by which a cost, put into it by name, was capped.

        Raises:
            ConfigError: They do not.
        """
        gates = self._supernet.gates
        chosen = gates.mode().cpu() & ~self._free
        one_a_gate = gates.mask(Architecture(gates.sizes, dict.fromkeys(gates.sizes, (0,)))).cpu() & self._free
        small = self._shaper.shape(chosen | one_a_gate)
        if self._fits(small) and self._reads_input(small):
            return
        least, _ = self._exchange(self._shaper.shape(chosen))
        self._require_fit(least, flag)
        if self._reads_input(least | self._free) and not self._reads_input(least):
            *_, lifeline = self._lifelines(least & ~self._free)
            self._require_fit(self._shaper.shape(least & ~self._free | lifeline), flag)

    def _require_fit(self, kept: Tensor, flag: str) -> None:
        self._require_within(self._shares(kept), flag)

    def _require_within(self, shares: list[float], flag: str = "--max-{}") -> None:
        for share, (kind, cap) in zip(shares, self._caps.items(), strict=True):
            if share > 1.0:
                least = f"{1e3 * share * cap:.3g} ms" if kind == "latency" else f"{round(share * cap):,}"
                given = f"{1e3 * cap:.3g} ms" if kind == "latency" else f"{round(cap):,}"
                rounded = self._shaper.round_to > 1
                few = f"{self._shaper.round_to} channels" if rounded else "a channel"
                rule = f"must leave room for layers without gates, the cheapest operations and {few} of what is between"
                remedy = f"raise the cap, {'lower --round-to, ' if rounded else ''}or exclude fewer layers"
                raise ConfigError(flag.format(kind), f"{rule}, {least}", value=given, remedy=remedy)

    def _fill(self, shaped: Tensor, closed: Tensor) -> Tensor:
        """Open again what fits, the most probable first, group by group until the next units of each are too many.

        It ends where a cap is all but used: in a network of many gates every look at one of them takes long.

        Rounding opens as many units as closing took until a whole multiple goes: more are closed than caps ask for.
        Units of several channels leave room for cheaper ones when the last and dearest is closed.

        Args:
            shaped: Units of an architecture that fits, bool (U,).
            closed: Units that were closed for it, the least probable first.
        """
        groups, full = self._supernet.gates.group_of_unit.tolist(), set[int]()
        used = max(self._shares(shaped))
        for unit in reversed(closed.tolist()):
            if used > ALL_BUT_USED:
                break
            if shaped[unit] or groups[unit] in full:
                continue
            opened = shaped.clone()
            opened[unit] = True
            opened = self._shaper.shape(opened)
            share = max(self._shares(opened))
            if share <= 1.0:
                shaped, used = opened, share
            else:
                full.add(groups[unit])
        return shaped

    def _exchange(self, kept: Tensor) -> tuple[Tensor, int]:
        """Exchange options for cheaper ones until the caps are met or there are none; how many exchanges it took."""
        gates = self._supernet.gates
        choices, choice = gates.choices(), gates.choice_of_unit()
        if not self._caps or choices is None or choice is None:
            return kept, 0
        scores, choice = choices.log_probs().detach().cpu(), choice.cpu()
        exchanged = 0
        while (excess := self._excess(kept)) > 0:
            best: tuple[float, Tensor] | None = None
            for unit in (~kept[gates.free :]).nonzero()[:, 0].tolist():
                other = kept & (choice != choice[gates.free + unit])
                old = (kept & ~other).nonzero()[0, 0] - gates.free
                other[gates.free + unit] = True
                saved = excess - self._excess(other)
                price = float(scores[old] - scores[unit]) / saved if saved > 0 else math.inf
                if saved > 0 and (best is None or price < best[0]):
                    best = price, other
            if best is None:
                break
            kept, exchanged = best[1], exchanged + 1
        return kept, exchanged

    def _excess(self, kept: Tensor) -> float:
        """By how much an architecture's costs, as shares of the caps, exceed them in all; 0 if they do not."""
        costs = self._shares(self._shaper.shape(kept))
        return sum(max(0.0, share - 1.0) for share in costs)

    def _closings(self, fits: Callable[[int], bool], units: int) -> int:
        """The fewest closings that fit, or all, searched from where the fit before ended."""
        if fits(0):
            return 0
        low, high = 0, units  # low does not fit; high does, if anything does
        guess, step = self._closed, max(1, self._closed // 16)
        while low < guess < high and (low == 0 or high == units):
            if fits(guess):
                high, guess = guess, guess - step
            else:
                low, guess = guess, guess + step
            step *= 2
        while high - low > 1:
            middle = (low + high) // 2
            if fits(middle):
                high = middle
            else:
                low = middle
        self._closed = high
        return high

    def _fits(self, kept: Tensor) -> bool:
        return all(share <= 1.0 for share in self._shares(kept))

    def _shares(self, kept: Tensor) -> list[float]:
        """Each capped cost as a share of its cap."""
        return self._shares_of(*self._costs(kept))

    def _shares_of(self, counts: Counts, latency: float | None) -> list[float]:
        costs: dict[CostName, float] = {"params": counts.params, "macs": counts.macs}
        if latency is not None:
            costs["latency"] = latency
        return [costs[kind] / cap for kind, cap in self._caps.items()]

    def _costs(self, kept: Tensor) -> tuple[Counts, float | None]:
        """Counts of the units' extracted network, and its predicted latency if that is capped."""
        graph, plan = self._supernet.graph, self._supernet.plan_units(kept)
        latency = self._supernet.measured().predict(graph, plan) if "latency" in self._caps else None
        return count_plan(graph, plan), latency


def closed_but_reading(kept: Tensor, order: Tensor, reads: Callable[[Tensor], bool]) -> Tensor:
    """What remains of ``kept`` if the units of ``order`` are closed in turn, but for those that reading depends on.

    Reading stops with more closings and never begins again, so that the next unit it depends on is found by bisection.

    Args:
        kept: Open units, bool (U,), which read.
        order: Units to close, (n,).
        reads: Whether units, bool (U,), read.
    """
    while len(order):
        low, high = 0, len(order) + 1  # closing low leaves it reading; high does not, or is one too many
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if reads(_without(kept, order[:middle])) else (low, middle)
        kept, order = _without(kept, order[:low]), order[low + 1 :]
    return kept


def _without(kept: Tensor, units: Tensor) -> Tensor:
    remaining = kept.clone()
    remaining[units] = False
    return remaining
