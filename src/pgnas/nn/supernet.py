"""The supernet: a network whose input channels are gated, its weights, and the posterior over its gates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from pgnas import bayes
from pgnas.architecture import Architecture
from pgnas.bayes import BilinearCost
from pgnas.errors import ModelError
from pgnas.nn.channels import ChannelGraph
from pgnas.nn.cost import CostName, Counts, count_plan
from pgnas.nn.device_costs import DeviceCosts
from pgnas.nn.expected_cost import expected_cost
from pgnas.nn.gate import Gates, Granularity, closed_for_good
from pgnas.nn.gated_layer import input_weight_sq, insert_gates
from pgnas.nn.liveness import Extend, Plan, make_plan, site_masks
from pgnas.nn.macs import Counted
from pgnas.nn.prices import Prices, mac_prices, parameter_prices
from pgnas.nn.sites import SearchSpace, Ungated


@dataclass(frozen=True)
class SupernetReport:
    """What of a network is searched and what is not.

    Attributes:
        gated: Gated layer to its number of units.
        choices: Gate on operations to their names, of which one (``OneOf``) or any (``AnyOf``) are kept.
        ungated: Layers without a gate, with the reason.
        barriers: Operations through which channels could not be followed, with the reason; nothing is shrunk there.
        notes: How the network was traced.
    """

    gated: dict[str, int]
    choices: dict[str, tuple[str, ...]]
    ungated: tuple[Ungated, ...]
    barriers: dict[str, str]
    notes: tuple[str, ...]


class Supernet(nn.Module):
    """A network with gates at the input channels of its layers and at the outputs of operations to choose from.

    Made by :func:`pgnas.supernet`.

    Its forward pass depends on the mode:

    * ``train()``: each example sees its own relaxed sample of the gates (Eq. 16);
    * ``eval()``: the posterior mean network, each gated channel and operation scaled by its keep probability;
    * inside :meth:`fixed`: one architecture, gates exactly 0 or 1, in either mode.

    Auxiliary heads that the network has in training alone answer in ``train()``, in the network's own tuple; they are
    not gated and no part of what is counted or extracted.

    Attributes:
        gates: The gates and their logits.
        temperature: tau of the relaxation.
        device_costs: What the operations cost in time on a device, if that was measured.
        inside: The layers without a gate of their own inside operations that have one.
    """

    device_costs: DeviceCosts | None = None

    def __init__(
        self,
        graph: ChannelGraph,
        space: SearchSpace,
        *,
        granularity: Granularity,
        initial_drop: float,
        temperature: float,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.space = space
        self.temperature = temperature
        root = graph.trace.headed or graph.trace.module
        self.body = insert_gates(root, root.graph, [(site.node, site.axis) for site in space.all_sites])
        self.gates = Gates(space.gates, granularity=granularity, initial_drop=initial_drop)
        self.inside = _ungated_inside(self.body, space)
        self._fixed: Tensor | None = None
        self._costs: dict[tuple[CostName, torch.device], tuple[BilinearCost, float]] = {}

    def forward(self, *inputs: Tensor, noise: Tensor | None = None) -> Any:
        """The network's output; see the class for what the gates are.

        Args:
            inputs: The network's inputs, batch first.
            noise: Uniform noise in [0, 1) for the relaxed sample in training, shape (B, U); drawn if absent.
        """
        if self._fixed is not None:
            values = self._fixed.to(inputs[0].dtype)[None]
        else:
            values = self.gate_values(inputs[0], noise, training=self.training)
        outputs = self.body(*inputs, list(self.channel_masks(values).values()))
        return outputs[0] if self.has_heads and not self.training else outputs

    @property
    def has_heads(self) -> bool:
        """Whether the network has auxiliary heads, which only training calls."""
        return self.graph.trace.headed is not None

    def gate_values(self, x: Tensor, noise: Tensor | None, *, training: bool) -> Tensor:
        """What the gates are for a batch: relaxed samples (B, U) in training, else keep probabilities (1, U).

        Args:
            x: The batch, (B, ...).
            noise: Uniform noise in [0, 1), (B, U); drawn if absent.
            training: Which of the two.
        """
        if not training:
            return torch.sigmoid(self.gates.logits())[None]
        if noise is None:
            noise = torch.rand(len(x), self.gates.units, device=x.device)
        return self.gates.rsample(noise, self.temperature)

    def channel_masks(self, values: Tensor) -> dict[str, Tensor]:
        """Gated node to the gates of its channels (..., channels), from values of all units (..., U)."""
        return site_masks(self.space.all_sites, self.gates.split(values))

    @contextmanager
    def fixed(self, architecture: Architecture) -> Iterator[Supernet]:
        """Evaluate (or train) one architecture with the supernet's weights.

        Raises:
            ArchitectureError: The architecture belongs to another search space.
        """
        before, self._fixed = self._fixed, self.gates.mask(architecture)
        try:
            yield self
        finally:
            self._fixed = before

    @torch.no_grad()
    def sample(self, *, generator: torch.Generator | None = None) -> Architecture:
        """An architecture drawn from the posterior: every unit Bernoulli(its keep probability), one option a choice."""
        return self.gates.architecture(self.gates.sample(generator=generator))

    @torch.no_grad()
    def mode(self) -> Architecture:
        """The most probable architecture: units with keep probability of one half or more, the likeliest options."""
        return self.gates.architecture(self.gates.mode())

    def open(self) -> Architecture:
        """The architecture with every unit kept, all options of a choice included: the network as it was handed in."""
        return self.gates.architecture(torch.ones(self.gates.units, dtype=torch.bool))

    @torch.no_grad()
    def keep_probabilities(self) -> dict[str, Tensor]:
        """Each gate's keep probabilities, shape (units,)."""
        return self.gates.split(torch.sigmoid(self.gates.logits()))

    @cached_property
    def headed_graph(self) -> ChannelGraph:
        """The channel analysis of the network with its auxiliary heads; ``has_heads`` says that there are any."""
        traced = self.graph.trace
        assert traced.headed is not None
        return ChannelGraph(replace(traced, module=traced.headed))

    def plan(self, architecture: Architecture) -> Plan:
        """Which channels the small network of an architecture computes."""
        return self.plan_units(self.gates.mask(architecture).cpu())

    def plan_units(self, kept: Tensor, *, extend: Extend | None = None) -> Plan:
        """As :meth:`plan`, for the kept units, bool (U,); ``extend`` as of :func:`pgnas.nn.liveness.make_plan`."""
        return make_plan(self.graph, self.channel_masks(kept), extend=extend)

    def count(self, architecture: Architecture) -> Counts:
        """Parameters and multiply-adds of the extracted network, without building it."""
        return count_plan(self.graph, self.plan(architecture))

    def prices(self, kind: CostName) -> Prices:
        """What every operation costs: multiply-adds for one example, trainable numbers, or seconds.

        Raises:
            ModelError: Latency is asked for, and ``device_costs`` is not set.
        """
        if kind != "latency":
            return mac_prices(self.graph) if kind == "macs" else parameter_prices(self.graph)
        return self.measured().prices

    def latency(self, architecture: Architecture) -> float:
        """Predicted seconds a batch of the extracted network, from ``device_costs``.

        Raises:
            ModelError: ``device_costs`` is not set.
        """
        return self.measured().predict(self.graph, self.plan(architecture))

    def measured(self) -> DeviceCosts:
        """The ``device_costs``, which must have been measured.

        Raises:
            ModelError: They are not set.
        """
        if self.device_costs is None:
            remedy = "set supernet.device_costs = pgnas.measure_device(supernet.graph)"
            raise ModelError("latency of a supernet", "must be measured before it is predicted", remedy=remedy)
        return self.device_costs

    def expected_cost(self, kind: CostName) -> Tensor:
        """E_q[cost] under the posterior as a share of the full network's, a scalar with gradient.

        Of the declared surrogate of :func:`pgnas.nn.expected_cost.expected_cost`.
        """
        return self.expected_cost_at(kind, self.gates.logits())

    def expected_cost_at(self, kind: CostName, logits: Tensor) -> Tensor:
        """As :meth:`expected_cost`, of a posterior with other keep logits (U,)."""
        key = (kind, logits.device)
        if key not in self._costs:
            sites, choice = self.space.all_sites, self.gates.choice_of_unit()
            cost = expected_cost(self.graph, sites, self.gates.sizes, self.prices(kind), choice=choice)
            self._costs[key] = (cost.to(logits.device), cost.full)
        cost, full = self._costs[key]
        return cost.expected(logits) / full

    def retarget_(self, kind: CostName, target: float) -> bayes.Retargeted:
        """Move the posterior to another expected cost, as a Gibbs prior with another multiplier would.

        Args:
            kind: The cost.
            target: What it shall be, as a share of the full network's.

        Raises:
            InputError: The gates cannot reach it.
        """
        natural = self.gates.natural().detach().double()
        logits, cost = self.gates.logits_of(natural), partial(self.expected_cost_at, kind)
        slopes = self.gates.shared(bayes.cost_slopes(cost, logits))
        slopes = slopes.masked_fill(closed_for_good(logits), 0.0)  # what was closed for good stays so
        found = bayes.retarget(natural, slopes, lambda moved: cost(self.gates.logits_of(moved)), target)
        self.gates.set_natural_(found.logits)
        return found

    def weight_sq(self) -> Tensor:
        """Squared norm of the weights read through each unit, shape (U,), with gradient; the paper's prior needs it.

        For an operation, of its layers that have no gate of their own. Weights behind other gates as well, a stream's
        or those of the operations that they are part of, count by the probability that these are open, at the layer's
        own unit: so their share of the KL is that of E_q of all of them.
        """
        logits = self.gates.logits()
        total = logits.new_zeros(logits.shape)
        first = self.gates.first_units()
        for site in self.space.sites:
            layer = self.body.get_submodule(site.layer)
            norms = input_weight_sq(layer).to(total)
            by_group = getattr(layer, "groups", 1) > 1
            unit = first[site.gate] + torch.arange(len(norms)) if by_group else site.units(first)
            norms = norms * stream_keep(logits, site.stream_units(first, without=-1)) if site.streams else norms
            total = total.index_add(0, unit.to(total.device), norms * self.use(site.layer, logits))
        return self.add_inside(total, self.body, logits)

    def use(self, layer: str, logits: Tensor) -> Tensor:
        """The probability that all operations that a layer is part of are open, a scalar; from all keep logits (U,)."""
        return self._all_open(self._around[layer], logits)

    def add_inside(self, total: Tensor, body: nn.Module, logits: Tensor) -> Tensor:
        """Add to the innermost operation's unit of ``total``, (U,), the weights inside it that no gate reads.

        Args:
            total: Squared norms.
            body: The supernet's body, or what is left of it.
            logits: All keep logits, (U,): the operation may be part of others.
        """
        there = dict(body.named_modules())
        for name in self.inside:
            if name in there:
                innermost, *others = self._around[name]
                norm = input_weight_sq(there[name]).sum().to(total) * self._all_open(others, logits)
                total = total.index_add(0, torch.tensor([innermost], device=total.device), norm[None])
        return total

    @cached_property
    def _around(self) -> dict[str, list[int]]:
        """For every gated layer, and those inside operations, the units of these, the innermost first."""
        first, operations = self.gates.first_units(), self.space.operations
        units = {site.layer: first[site.gate] + site.option for site in operations if site.option is not None}
        innermost_first = sorted(units, key=len, reverse=True)
        layers = (*(site.layer for site in self.space.sites), *self.inside)
        return {name: [units[o] for o in innermost_first if f"{name}.".startswith(f"{o}.")] for name in layers}

    def _all_open(self, units: Sequence[int], logits: Tensor) -> Tensor:
        return torch.sigmoid(logits[list(units)]).prod()

    @property
    def report(self) -> SupernetReport:
        """What is searched, what is not, and why."""
        sizes = {site.layer: self.gates.sizes[site.gate] for site in self.space.sites}
        choices = {spec.name: spec.options for spec in self.gates.specs if spec.options}
        return SupernetReport(sizes, choices, self.space.ungated, dict(self.graph.barriers), self.graph.trace.notes)

    def weight_parameters(self) -> list[nn.Parameter]:
        """The network's own parameters, without the logits."""
        return list(self.body.parameters())


def stream_keep(logits: Tensor, units: Tensor) -> Tensor:
    """Keep probabilities of stream units ``units`` (channels,), 1 for -1; from all keep logits (U,)."""
    return nn.functional.pad(torch.sigmoid(logits), (0, 1), value=1.0)[units.to(logits.device)]


def _ungated_inside(body: nn.Module, space: SearchSpace) -> tuple[str, ...]:
    """Every layer without a gate of its own that is part of an operation that has one."""
    gated = {site.layer for site in space.sites}
    layers = [name for name, m in body.named_modules() if isinstance(m, Counted) and name not in gated]
    operations = [f"{site.layer}." for site in space.operations if site.option is not None]
    return tuple(name for name in layers if f"{name}.".startswith(tuple(operations)))
