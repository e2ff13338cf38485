"""When a supernet that trains sheds its closed gates, and how long a phase goes on whose epochs get cheaper."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pgnas.errors import ConfigError
from pgnas.nn import Supernet
from pgnas.nn.shedding import shed_counts


@dataclass(frozen=True)
class Pace:
    """Where in the run's schedule the steps of some epochs lie: evenly from ``position`` to ``end``.

    Attributes:
        epoch: Epochs of the run before the first of these.
        position: Steps of the schedule that are behind by then.
        stop: Epochs of the run after the last of these.
        end: Steps of the schedule that are behind by then.
        steps: Optimiser steps of an epoch of the run.
    """

    epoch: int
    position: float
    stop: int
    end: float
    steps: int

    def at(self, step: int) -> float:
        """The place in the schedule of an optimiser step of the run."""
        share = (step / self.steps - self.epoch) / max(1, self.stop - self.epoch)
        return self.position + share * (self.end - self.position)


def affordable(epochs: float, cost: float) -> int:
    """Whole epochs that ``epochs`` of the full network pay for, if one costs ``cost`` of these."""
    return max(0, math.floor(epochs / max(cost, 1e-6) + 1e-9))


def require_sheddable(supernet: Supernet) -> None:
    """Check that a supernet that is asked to shed can.

    Raises:
        ConfigError: It has auxiliary heads, which read values that would get narrower.
    """
    if supernet.has_heads:
        rule, remedy = "needs a network whose every output is there in evaluation", "leave it out"
        raise ConfigError("--shed", rule, value="on, with auxiliary heads that only training has", remedy=remedy)


@dataclass(frozen=True)
class SheddingRule:
    """When gates leave.

    Attributes:
        keep: A gate has decided to close while its keep probability is below this.
        epochs: For so many epochs in a row.
        saving: A shedding must save this share of the multiply-adds of what is left.
        moments: At most so many sheddings.
        worth: Forward multiply-adds that a shedding must save in what remains of the phase.
    """

    keep: float = 0.05
    epochs: int = 1
    saving: float = 0.05
    moments: int = 12
    worth: float = 0.0

    @classmethod
    def compiled(cls, worth: float) -> SheddingRule:
        """For a network under ``torch.compile``, which begins again at each shedding: few, and each worth it."""
        return cls(saving=0.25, moments=2, worth=worth)


@dataclass
class Shedder:
    """Watches the gates of one supernet and says which ones leave.

    Attributes:
        whole: The supernet.
        rule: When.
        examples: Examples an epoch.
        macs: Multiply-adds of a pass through what is left of it.
        moments: Sheddings so far.
        low: For how many epochs each unit's keep probability has been low, (U,).
    """

    whole: Supernet
    rule: SheddingRule
    examples: float
    macs: int
    low: Tensor
    moments: int = 0

    @classmethod
    def of(cls, whole: Supernet, rule: SheddingRule, *, examples: float) -> Shedder:
        """One for a whole supernet."""
        low = torch.zeros(whole.gates.units, dtype=torch.long)
        return cls(whole, rule, examples, whole.count(whole.open()).macs, low)

    @torch.no_grad()
    def macs_at_start(self) -> int:
        """Multiply-adds of a pass once the gates of a posterior learned before that have decided to close are gone."""
        return shed_counts(self.whole, self._decided()).macs

    @torch.no_grad()
    def closed_at_start(self) -> Tensor | None:
        """The units, bool (U,), of a posterior learned before that leave at once; None if there are none."""
        closed, macs = self._decided(), self.macs_at_start()
        if macs == self.macs:
            return None
        self.macs = macs
        return closed

    @torch.no_grad()
    def after_epoch(self, epochs_left: int) -> Tensor | None:
        """The units, bool (U,), that are closed for good from now on, if it is time to shed."""
        low = self._decided()
        self.low = torch.where(low, self.low + 1, 0)
        ripe = self.low >= self.rule.epochs
        if self.moments == self.rule.moments or epochs_left < 1 or not (ripe & ~self.whole.gates.closed.cpu()).any():
            return None
        closed = ripe | self.whole.gates.closed.cpu()
        macs = shed_counts(self.whole, closed).macs
        saved = self.macs - macs
        if saved < self.rule.saving * self.macs or saved * epochs_left * self.examples < self.rule.worth:
            return None
        self.macs, self.moments = macs, self.moments + 1
        return closed

    def _decided(self) -> Tensor:
        """Units, bool (U,), that are hardly ever open; the options of a choice stay, however unlikely."""
        low = torch.sigmoid(self.whole.gates.logits()).cpu() < self.rule.keep
        low[self.whole.gates.free :] = False
        return low

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        closed = self.whole.gates.closed.cpu()
        return {"closed": closed, "low": self.low, "macs": self.macs, "moments": self.moments}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`, the closed units apart."""
        self.low, self.macs, self.moments = state["low"], int(state["macs"]), int(state["moments"])


@dataclass
class Spending:
    """What the epochs of a phase have cost, and how many more there will be.

    Attributes:
        full: Multiply-adds of the full network.
        steps: Optimiser steps of an epoch.
        end: Steps of the schedule at the end of the phase.
        epochs: Epochs of the phase without a budget.
        budget: Epochs of the full network that it may cost; None: it takes the epochs planned, whatever they cost.
        spent: Epochs of the full network that it has cost.
        pace: Of the epochs up to the end, with a budget.
    """

    full: float
    steps: int
    end: float
    epochs: int
    budget: float | None = None
    spent: float = 0.0
    pace: Pace | None = None

    def __post_init__(self) -> None:
        if self.budget is not None:
            self.pace = Pace(0, 0.0, max(1, affordable(self.budget, 1.0)), self.end, self.steps)

    @property
    def stop(self) -> int:
        """Epochs after which the phase ends, as planned now."""
        return self.epochs if self.pace is None else self.pace.stop

    def place(self, step: int) -> float:
        """Where in the schedule an optimiser step lies: with a budget, where what is spent of it says."""
        return step if self.pace is None else self.pace.at(step)

    def after_epoch(self, macs: float) -> None:
        """Count an epoch of a network with so many multiply-adds."""
        self.spent += macs / self.full

    def plan(self, epoch: int, macs: float) -> None:
        """Plan what remains after ``epoch`` with epochs of so many multiply-adds an example; the first one is done."""
        if self.budget is not None and self.pace is not None:
            stop = max(1, epoch + affordable(self.budget - self.spent, macs / self.full))
            self.pace = Pace(epoch, self.pace.at(epoch * self.steps), stop, self.end, self.steps)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"spent": self.spent, "pace": None if self.pace is None else asdict(self.pace)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        self.spent = float(state["spent"])
        self.pace = None if state["pace"] is None else Pace(**state["pace"])
