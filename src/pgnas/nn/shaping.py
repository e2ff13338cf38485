"""Make a sub-network easy on hardware: few picks of channels from shared values, and round numbers of channels.

Both only open units that are closed: a shaped architecture keeps what the unshaped one keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pgnas.nn.channels import Dense
from pgnas.nn.device_costs import DeviceCosts
from pgnas.nn.liveness import Plan, make_plan, site_masks
from pgnas.nn.sites import Site
from pgnas.nn.supernet import Supernet

PICK_WORTH = 0.75
"""Where nothing is measured: a reader of this share of a shared value's channels is cheaper reading all of them.

Measured on a CPU (multi-branch ResNet, width 32, training): picking cost more than half of the whole step.
"""


@dataclass(frozen=True)
class Pick:
    """A layer that would read some of a value's channels.

    Attributes:
        node: The layer's node.
        origin: The node that makes the value.
        wanted: How many channels the layer wants of it.
        there: How many there are.
    """

    node: str
    origin: str
    wanted: int
    there: int


PickRule = Callable[[Pick], bool]
"""Whether a layer had better read all channels."""


def by_share(pick: Pick) -> bool:
    """Whether most channels are read anyway; the same on every device."""
    return pick.wanted >= PICK_WORTH * pick.there


def by_time(supernet: Supernet, costs: DeviceCosts) -> PickRule:
    """Whether picking takes longer than what it saves in the layer, as measured on the device."""
    graph = supernet.graph

    def rule(pick: Pick) -> bool:
        op, price = graph.ops[pick.node], costs.prices[pick.node]
        assert isinstance(op, Dense)
        outputs = op.value.channels / op.groups
        saved = price.pair * outputs * (pick.there - pick.wanted)
        numbers = costs.channel_numbers(graph, pick.origin) * pick.wanted
        return costs.pick_seconds(numbers) >= saved

    return rule


@dataclass(frozen=True)
class _Reading:
    """Channels of a value that a site reads, with the gate's unit behind each."""

    site: Site
    origin: str
    channels: slice
    units: Tensor


class Shaper:
    """Shapes the architectures of one supernet.

    Args:
        supernet: The supernet.
        reads_all: Where layers read all of a value of which they want a part; None: nowhere.
        round_to: Numbers of channels are brought up to multiples of this, if the network is wide enough.
    """

    def __init__(self, supernet: Supernet, *, reads_all: PickRule | None = None, round_to: int = 1) -> None:
        self._supernet, self._reads_all, self._round_to = supernet, reads_all, round_to
        graph, first = supernet.graph, supernet.gates.first_units()
        self._units = {site.node: first[site.gate] + site.unit_of_channel.cpu() for site in supernet.space.sites}
        self._readings: dict[str, list[_Reading]] = {}
        for site in supernet.space.sites:
            for run in graph.sources(site.source):
                if run.channels % graph.value(run.origin).channels:
                    continue  # a part of what was made
                part = slice(run.start, run.start + run.channels)
                reading = _Reading(site, run.origin, part, self._units[site.node][part])
                self._readings.setdefault(run.origin, []).append(reading)

    def shape(self, kept: Tensor) -> Tensor:
        """The units to keep, bool (U,): those of ``kept``, and what makes them easier on hardware."""
        kept = kept.clone()
        if self._reads_all is not None:
            self._widen(kept)
        if self._round_to > 1:
            for _ in range(3):  # gates that several layers share may take more than one round
                before = kept.clone()
                self._round_values(kept)
                if torch.equal(before, kept):
                    break
            self._round_picks(kept)
        return kept

    def _plan(self, kept: Tensor) -> Plan:
        return make_plan(self._supernet.graph, self._open(kept))

    def _open(self, kept: Tensor) -> dict[str, Tensor]:
        return site_masks(self._supernet.space.sites, self._supernet.gates.split(kept))

    def _widen(self, kept: Tensor) -> None:
        """Let layers read whole values where the rule says so."""
        assert self._reads_all is not None
        plan = self._plan(kept)
        for origin, readings in self._readings.items():
            there = plan.kept(origin)
            for reading in readings:
                if not plan.reads[reading.site.node]:
                    continue
                factor = len(reading.units) // len(there)
                wanted = plan.reads[reading.site.node][0][reading.channels].reshape(-1, factor).any(1)
                pick = Pick(reading.site.node, origin, int(wanted.sum()), int(there.sum()))
                if 0 < pick.wanted < pick.there and self._reads_all(pick):
                    kept[reading.units[there.repeat_interleave(factor)]] = True

    def _round_values(self, kept: Tensor) -> None:
        """Bring the computed channels of every value up to a round number, last value first.

        A channel is opened in the layers that read the whole value, so that they go on doing so.
        """
        logits = self._supernet.gates.logits().detach().cpu()

        alive: set[str] = set()  # readers come before what they read

        def extend(name: str, computed: Tensor, live: Tensor) -> Tensor:
            more = torch.zeros_like(computed)
            if computed.any():
                alive.add(name)
            readings = [r for r in self._readings.get(name, []) if r.site.node in alive]
            readings = _whole_readers(readings, kept, computed)
            missing = -int(computed.sum()) % self._round_to
            if not readings or not missing or not computed.any():
                return more
            closed = live & ~computed
            score = sum((logits[r.units].reshape(len(computed), -1).amax(1) for r in readings), torch.zeros(()))
            order = torch.where(closed, score, -torch.inf).argsort(descending=True, stable=True)
            for channel in order[: int(closed.sum())].tolist():
                if not missing:
                    break
                for reading in readings:
                    kept[reading.units.reshape(len(computed), -1)[channel]] = True
                opened = [kept[r.units].reshape(len(computed), -1).any(1) for r in readings]
                more = torch.stack(opened).any(0) & live & ~computed  # a unit may hold more channels than one
                missing = -int((computed | more).sum()) % self._round_to
            return more

        make_plan(self._supernet.graph, self._open(kept), extend=extend)

    def _round_picks(self, kept: Tensor) -> None:
        """Bring the inputs of layers that pick channels up to a round number, of those that are there."""
        plan = self._plan(kept)
        logits = self._supernet.gates.logits().detach().cpu()
        for site in self._supernet.space.sites:
            if not plan.reads[site.node]:
                continue
            reads, units = plan.reads[site.node][0], self._units[site.node]
            missing = -int(reads.sum()) % self._round_to
            there = self._there(plan, site) & ~reads
            if not missing or int(there.sum()) < missing:
                continue
            order = torch.where(there, logits[units], -torch.inf).argsort(descending=True, stable=True)
            kept[units[order[:missing]]] = True

    def _there(self, plan: Plan, site: Site) -> Tensor:
        """Channels of what a site reads that are computed where they are made, bool (channels,)."""
        there = torch.zeros(len(site.unit_of_channel), dtype=torch.bool)
        for origin in {run.origin for run in self._supernet.graph.sources(site.source)}:
            for reading in self._readings.get(origin, []):
                if reading.site is site:
                    made = plan.computed[origin]
                    there[reading.channels] = made.repeat_interleave(len(reading.units) // len(made))
        return there


def _whole_readers(readings: list[_Reading], kept: Tensor, computed: Tensor) -> list[_Reading]:
    """The layers that read all computed channels of a value, or else the one that reads most."""
    wanted = [int((kept[r.units].reshape(len(computed), -1).any(1) & computed).sum()) for r in readings]
    whole = [r for r, count in zip(readings, wanted, strict=True) if count == int(computed.sum())]
    most = max(wanted, default=0)
    return whole or ([readings[wanted.index(most)]] if most else [])
