"""A supernet that sheds: units closed for good leave it while it trains, and what nobody reads leaves with them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pgnas.nn.cost import CostName, Counts, count_plan
from pgnas.nn.gated_layer import input_weight_sq, insert_gates
from pgnas.nn.liveness import Plan, make_plan, site_masks
from pgnas.nn.rebuild import Builder
from pgnas.nn.shaping import Shaper, by_share
from pgnas.nn.supernet import Supernet, stream_keep


def plan_without(full: Supernet, closed: Tensor) -> Plan:
    """What is left of a supernet in training when the units ``closed``, bool (U,), are closed for good.

    Operations to choose from stay; their layers may get narrower.

    Nothing is folded into constants: what BatchNorm makes of a constant differs between training and evaluation, and
    its own parameters go on learning. So a layer whose inputs are all closed keeps one, closed. And a layer that
    reads most of a shared value reads all that is left of it, as its gates are there anyway: picking costs more.
    """
    kept = Shaper(full, reads_all=by_share).shape(~closed.cpu())
    masks = site_masks(full.space.sites, full.gates.split(kept))
    return make_plan(full.graph, masks, fold=False)


class ShedSupernet(nn.Module):
    """A supernet without the units that :meth:`pgnas.nn.Gates.close_` closed for good.

    Its forward pass is that of the whole supernet, in training (with the same noise) and in evaluation, to float
    rounding, and so are the gradients of what is left. Weights and statistics are its own until :meth:`put_back`; the
    gates are the whole supernet's, all U of them, so that names, noise and costs stay the same.

    Args:
        full: The supernet; its gates say which units are closed.

    Attributes:
        gates: Those of ``full``, shared.
        body: What is left of the network, with gates at its layers.
        counts: Parameters and multiply-adds of a pass through it.
    """

    def __init__(self, full: Supernet) -> None:
        super().__init__()
        self._full = [full]  # in a list, so that its weights are not taken for this module's
        self.gates = full.gates
        plan = plan_without(full, full.gates.closed)
        builder = Builder(full.graph, plan, full.body, constants={}, contributions={}, keep_marks=True)
        self._small = [builder.build()]
        self.counts = count_plan(full.graph, plan)
        copied, module = self._small[0].copied, self._small[0].module
        sites = [site for site in full.space.sites if site.node in copied]
        self._operations = [site for site in full.space.operations if site.node in copied]
        gated = [(copied[site.node], site.axis) for site in (*sites, *self._operations)]
        self.body = insert_gates(module, module.graph, gated)
        first = full.gates.first_units()
        self._layers = [site.layer for site in sites]
        for index, site in enumerate(sites):
            device, reads = full.gates.closed.device, plan.reads[site.node][0]
            self.register_buffer(f"units_{index}", site.units(first)[reads].to(device), persistent=False)
            streams = site.stream_units(first, without=-1)[reads].to(device) if site.streams else None
            self.register_buffer(f"streams_{index}", streams, persistent=False)
        self.train(full.training)

    @property
    def full(self) -> Supernet:
        """The whole supernet."""
        return self._full[0]

    def forward(self, *inputs: Tensor, noise: Tensor | None = None) -> Any:
        """The output of the whole supernet: see there. The noise is for all U units, those shed included."""
        values = self.full.gate_values(inputs[0], noise, training=self.training)
        masks = [values.index_select(1, units) for units in self._units()]
        streams = self._streams()
        if any(units is not None for units in streams):
            padded = nn.functional.pad(values, (0, 1), value=1.0)  # -1: no stream gate
            both = zip(masks, streams, strict=True)
            masks = [mask if units is None else mask * padded[:, units] for mask, units in both]
        operations = site_masks(self._operations, self.gates.split(values)).values()
        # An operation's channels share its gate, however many are left of them.
        return self.body(*inputs, masks + [mask[..., :1] for mask in operations])

    def _units(self) -> list[Tensor]:
        """The unit of every input channel of each gated layer."""
        return [self.get_buffer(f"units_{index}") for index in range(len(self._layers))]

    def _streams(self) -> list[Tensor | None]:
        """As :meth:`_units`, of the stream gates, -1 for none; None for layers without."""
        return [self._buffers[f"streams_{index}"] for index in range(len(self._layers))]

    def expected_cost(self, kind: CostName) -> Tensor:
        """That of the whole supernet, in which the closed units have keep probability 0."""
        return self.full.expected_cost(kind)

    def weight_sq(self) -> Tensor:
        """Squared norm of the weights read through each unit, (U,), with gradient; weights that left do not count."""
        logits = self.gates.logits()
        total = logits.new_zeros(logits.shape)
        for name, units, streams in zip(self._layers, self._units(), self._streams(), strict=True):
            norms = input_weight_sq(self.body.get_submodule(name)).to(total)
            norms = norms if streams is None else norms * stream_keep(logits, streams)
            norms = norms * self.full.use(name, logits)
            total = total.index_add(0, units[:: len(units) // len(norms)], norms)
        return self.full.add_inside(total, self.body, logits)

    def weight_parameters(self) -> list[nn.Parameter]:
        """The remaining network's own parameters, without the logits."""
        return list(self.body.parameters())

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is left of tensors of the whole network (momentum), by parameter name."""
        return {name: self._small[0].take(name, tensors[name]) for name, _ in self._named() if name in tensors}

    def put(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of :meth:`take`: tensors of the whole network, 0 where channels left."""
        whole = dict(self.full.body.named_parameters())
        found = {name: torch.zeros_like(whole[name]) for name in tensors}
        for name, tensor in tensors.items():
            self._small[0].put_(name, found[name], tensor)
        return found

    def put_back(self) -> Supernet:
        """Write weights and statistics back into the whole supernet, whose channels that left stay as they were."""
        whole = dict(chain(self.full.body.named_parameters(), self.full.body.named_buffers()))
        for name, tensor in chain(self._named(), self.body.named_buffers()):
            if name in whole:  # indices of selected channels are not
                self._small[0].put_(name, whole[name], tensor)
        return self.full

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.body.named_parameters())


def shed_counts(full: Supernet, closed: Tensor) -> Counts:
    """Parameters and multiply-adds of the supernet without the units ``closed``, bool (U,), without building it."""
    return count_plan(full.graph, plan_without(full, closed))
