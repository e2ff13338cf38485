"""Make a sub-network easy on hardware: few picks of channels from shared values, and round numbers of channels.

Both only open units that are closed: a shaped architecture keeps what the unshaped one keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pgnas.nn.channels import Dense
from pgnas.nn.coupling import passes_channels
from pgnas.nn.device_costs import DeviceCosts
from pgnas.nn.liveness import Plan
from pgnas.nn.prices import Price
from pgnas.nn.sites import Site
from pgnas.nn.supernet import Supernet

PICK_WORTH = 0.75
"""Where nothing is measured: a reader of this share of a shared value's channels is cheaper reading all of them.

Measured on a CPU (multi-branch ResNet, width 32, training): picking cost more than half of the whole step.
"""


@dataclass(frozen=True)
class Pick:
    """An operation that would read some of a value's channels: a gated layer, or a sum of values.

    Attributes:
        node: The operation.
        origin: The node that makes the value.
        wanted: How many channels the operation wants of it.
        there: How many there are.
    """

    node: str
    origin: str
    wanted: int
    there: int


PickRule = Callable[[Pick], bool]
"""Whether an operation had better read all channels."""


def by_share(pick: Pick) -> bool:
    """Whether most channels are read anyway; the same on every device."""
    return pick.wanted >= PICK_WORTH * pick.there


def by_time(supernet: Supernet, costs: DeviceCosts) -> PickRule:
    """Whether picking takes longer than what it saves, as measured on the device.

    A layer that picks saves its multiply-adds with the other channels. A sum that picks saves making them in the layers
    whose outputs it adds, and reading them in the layers that read the sum.
    """
    graph = supernet.graph
    readers: dict[str, list[str]] = {}
    for site in supernet.space.sites:
        for run in graph.sources(site.source):
            readers.setdefault(run.origin, []).append(site.node)

    def reading(node: str) -> float:
        """Seconds a channel that a layer reads."""
        op = graph.ops[node]
        outputs = op.value.channels / op.groups if isinstance(op, Dense) else 1
        return costs.prices[node].pair * outputs

    def making(node: str) -> float:
        """Seconds a channel that a layer makes."""
        op, price = graph.ops[node], costs.prices.get(node, Price())
        return price.output + price.pair * (op.per_group if isinstance(op, Dense) else 1)

    def saved(pick: Pick) -> float:
        op = graph.ops[pick.node]
        if isinstance(op, Dense):
            return reading(pick.node)
        makers = [run.origin for source in op.inputs for run in graph.sources(source)]
        return sum(map(reading, readers.get(pick.node, []))) + sum(
            making(name) for name in makers if isinstance(graph.ops[name], Dense)
        )

    def rule(pick: Pick) -> bool:
        numbers = costs.channel_numbers(graph, pick.origin) * pick.wanted
        return costs.pick_seconds(numbers) >= saved(pick) * (pick.there - pick.wanted)

    return rule


@dataclass(frozen=True)
class _Reading:
    """Channels of a value that a site reads, with the units behind each, (channels, 2): its gate's, its stream's."""

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

    Attributes:
        round_to: As given.
    """

    def __init__(self, supernet: Supernet, *, reads_all: PickRule | None = None, round_to: int = 1) -> None:
        self._supernet, self._reads_all, self.round_to = supernet, reads_all, round_to
        graph, first = supernet.graph, supernet.gates.first_units()
        self._units = {site.node: _both_units(site, first) for site in supernet.space.sites}
        self._readings: dict[str, list[_Reading]] = {}  # by what is read
        self._readings_of: dict[str, list[_Reading]] = {site.node: [] for site in supernet.space.sites}  # by who reads
        for site in supernet.space.sites:
            for run in graph.sources(site.source):
                if run.channels % graph.value(run.origin).channels:
                    continue  # a part of what was made
                part = slice(run.start, run.start + run.channels)
                reading = _Reading(site, run.origin, part, self._units[site.node][part])
                self._readings.setdefault(run.origin, []).append(reading)
                self._readings_of[site.node].append(reading)

    def shape(self, kept: Tensor) -> Tensor:
        """The units to keep, bool (U,): those of ``kept``, and what makes them easier on hardware."""
        kept = kept.clone()
        if self._reads_all is not None:
            self._widen(kept)
        if self.round_to > 1:
            for _ in range(3):  # gates that several layers share may take more than one round
                before = kept.clone()
                self._round_values(kept)
                if torch.equal(before, kept):
                    break
            self._round_picks(kept)
        return kept

    def _widen(self, kept: Tensor) -> None:
        """Let operations read whole values where the rule says so, first value first."""
        assert self._reads_all is not None
        graph, plan = self._supernet.graph, self._supernet.plan_units(kept)
        whole: dict[str, Tensor] = {}  # the channels with which each value is made then
        sites = {site.node: site for site in self._supernet.space.sites}
        for name, op in graph.ops.items():
            whole[name] = plan.kept(name)
            if not whole[name].any():
                continue
            if name in sites and plan.reads[name]:
                self._widen_site(sites[name], plan, whole[sites[name].source], kept)
            elif passes_channels(op):
                whole[name] = self._widened(name, whole)
                for reading in self._readings.get(name, []):
                    if _open(kept, reading.units).any():
                        self._follow_stream(reading, plan.kept(name), whole[name], kept)

    def _widened(self, name: str, whole: dict[str, Tensor]) -> Tensor:
        """The channels of a value that is passed on or summed, if sums read whole values where the rule says so."""
        assert self._reads_all is not None
        graph, op, own = self._supernet.graph, self._supernet.graph.ops[name], whole[name]
        if op.source_runs() is not None:
            return own | (op.push([whole[source][:, None].long() for source in op.inputs])[:, 0] > 0)
        for source, value in zip(op.inputs, op.values, strict=True):
            there = whole[source]
            if value.channels != op.value.channels or not (there & ~own).any():
                continue
            if self._reads_all(Pick(name, graph.sources(source)[0].origin, int(own.sum()), int((there | own).sum()))):
                own = own | there
        return own

    def _follow_stream(self, reading: _Reading, before: Tensor, after: Tensor, kept: Tensor) -> None:
        """Let a layer that read all of a sum go on doing so when the sum is made with more channels."""
        factor = len(reading.units) // len(before)
        if _open(kept, reading.units[before.repeat_interleave(factor)]).all():
            kept[reading.units[after.repeat_interleave(factor)]] = True

    def _widen_site(self, site: Site, plan: Plan, there: Tensor, kept: Tensor) -> None:
        """Let a layer read all of what it reads, source by source, where the rule says so."""
        assert self._reads_all is not None
        units = self._units[site.node]
        reads = plan.reads[site.node][0] | _open(kept, units)
        for run in self._supernet.graph.sources(site.source):
            part = slice(run.start, run.start + run.channels)
            wanted, made = reads[part] & there[part], there[part]
            block = max(1, run.channels // self._supernet.graph.value(run.origin).channels)
            pick = Pick(site.node, run.origin, int(wanted.sum()) // block, int(made.sum()) // block)
            if 0 < pick.wanted < pick.there and self._reads_all(pick):
                kept[units[part][made]] = True

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
            missing = -int(computed.sum()) % self.round_to
            if not readings or not missing or not computed.any():
                return more
            closed = live & ~computed
            score = sum((_least(logits, r.units).reshape(len(computed), -1).amax(1) for r in readings), torch.zeros(()))
            order = torch.where(closed, score, -torch.inf).argsort(descending=True, stable=True)
            for channel in order[: int(closed.sum())].tolist():
                if not missing:
                    break
                for reading in readings:
                    kept[reading.units.reshape(len(computed), -1)[channel]] = True
                opened = [_open(kept, r.units).reshape(len(computed), -1).any(1) for r in readings]
                more = torch.stack(opened).any(0) & live & ~computed  # a unit may hold more channels than one
                missing = -int((computed | more).sum()) % self.round_to
            return more

        self._supernet.plan_units(kept, extend=extend)

    def _round_picks(self, kept: Tensor) -> None:
        """Bring the inputs of layers that pick channels up to a round number, of those that are there."""
        plan = self._supernet.plan_units(kept)
        logits = self._supernet.gates.logits().detach().cpu()
        for site in self._supernet.space.sites:
            if not plan.reads[site.node]:
                continue
            reads, units = plan.reads[site.node][0], self._units[site.node]
            missing = -int(reads.sum()) % self.round_to
            there = self._there(plan, site) & ~reads
            if not missing or int(there.sum()) < missing:
                continue
            order = torch.where(there, _least(logits, units), -torch.inf).argsort(descending=True, stable=True)
            kept[units[order[:missing]]] = True

    def _there(self, plan: Plan, site: Site) -> Tensor:
        """Channels of what a site reads that are computed where they are made, bool (channels,)."""
        there = torch.zeros(len(site.unit_of_channel), dtype=torch.bool)
        for reading in self._readings_of[site.node]:
            made = plan.computed[reading.origin]
            there[reading.channels] = made.repeat_interleave(len(reading.units) // len(made))
        return there


def _both_units(site: Site, first: Mapping[str, int]) -> Tensor:
    """The unit of a layer's gate for every channel, and that of its stream's, (channels, 2); without one the same."""
    own = site.units(first).cpu()
    return torch.stack([own, site.stream_units(first, without=own)], 1)


def _open(kept: Tensor, units: Tensor) -> Tensor:
    """Whether channels with the units (channels, 2) are open, (channels,)."""
    return kept[units].all(1)


def _least(logits: Tensor, units: Tensor) -> Tensor:
    """The lower logit of the units (channels, 2), (channels,)."""
    return logits[units].amin(1)


def _whole_readers(readings: list[_Reading], kept: Tensor, computed: Tensor) -> list[_Reading]:
    """The layers that read all computed channels of a value, or else the one that reads most."""
    wanted = [int((_open(kept, r.units).reshape(len(computed), -1).any(1) & computed).sum()) for r in readings]
    whole = [r for r, count in zip(readings, wanted, strict=True) if count == int(computed.sum())]
    most = max(wanted, default=0)
    return whole or ([readings[wanted.index(most)]] if most else [])
