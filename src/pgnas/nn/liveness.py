"""Which channels of every value a sub-network computes: dead-code elimination over channels.

Forwards, a channel is *live* if it depends on the data through open gates; the others are constants. Backwards, a
channel is *needed* if something that is kept reads it. A convolution reads only the live channels that its gate keeps;
what its constant channels contribute is a constant and is added to its output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pgnas.nn.channels import ChannelGraph, Dense, ReadShape
from pgnas.nn.sites import Site


@dataclass(frozen=True)
class Plan:
    """What the small network computes; every mask is a bool tensor over channels.

    Attributes:
        computed: Node to the output channels it computes (those of no channel are not built).
        constant: Node to the channels that are read but do not depend on the data.
        reads: Node to the channels it reads of each input.
        folded: Gated node to the constant channels it would read, whose contribution is added as a constant.
    """

    computed: dict[str, Tensor]
    constant: dict[str, Tensor]
    reads: dict[str, list[Tensor]]
    folded: dict[str, Tensor]

    def kept(self, name: str) -> Tensor:
        """All channels of a node's value that exist in the small network."""
        return self.computed[name] | self.constant[name]


def site_masks(sites: Sequence[Site], gates: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each gated node's channel mask (..., channels) from its gates' values (..., units)."""
    masks: dict[str, Tensor] = {}
    for site in sites:
        mask = gates[site.gate]
        if site.option is not None:
            masks[site.node] = mask[..., site.option, None].expand(*mask.shape[:-1], len(site.unit_of_channel))
            continue
        identity = len(site.unit_of_channel) == mask.shape[-1]
        own = mask if identity else mask[..., site.unit_of_channel.to(mask.device)]
        masks[site.node] = own * _stream_mask(site, gates, own) if site.streams else own
    return masks


def _stream_mask(site: Site, gates: dict[str, Tensor], like: Tensor) -> Tensor:
    """The values of the stream gates of a layer's channels, (..., channels); 1 where there is none."""
    parts, end = list[Tensor](), 0
    for part in site.streams:
        parts.append(torch.ones_like(like[..., end : part.start]))
        parts.append(gates[part.gate][..., part.units.to(like.device)])
        end = part.start + len(part.units)
    return torch.cat([*parts, torch.ones_like(like[..., end:])], -1)


Extend = Callable[[str, Tensor, Tensor], Tensor]
"""Given a node, its channels to be computed and its live ones: live channels to be computed as well."""


def make_plan(
    graph: ChannelGraph, open_channels: dict[str, Tensor], *, extend: Extend | None = None, fold: bool = True
) -> Plan:
    """Plan the sub-network in which each gated node reads only its open channels.

    Args:
        graph: The analysed network.
        open_channels: Gated node to its open input channels, bool (channels,); layers not named read everything.
        extend: Adds channels that nothing reads yet, if given.
        fold: Whether what does not depend on the data becomes a constant. If not, everything needed is computed, as a
            network in training must (its BatchNorm and biases go on learning): there are no constants, and a layer
            whose inputs are all closed reads one of them, which its gate must make 0.
    """
    live = _live(graph, open_channels) if fold else _everything(graph)
    need = {name: torch.zeros(op.value.channels, dtype=torch.bool) for name, op in graph.ops.items()}
    plan = Plan({}, {}, {}, {})
    measured: set[str] = set()  # a value whose sizes are read must have a channel left
    for name in reversed(graph.ops):
        op = graph.ops[name]
        is_output = graph.nodes[name].op == "output"
        wanted = torch.ones(1, dtype=torch.bool) if is_output else need[name]
        if name in measured and not wanted.any():
            wanted[0] = True
        computed = wanted if is_output else op.widen(wanted & live[name])
        if extend is not None:
            computed = computed | extend(name, computed, live[name])
        plan.computed[name] = computed
        plan.constant[name] = wanted & ~computed
        reads = [rows[:, 0] > 0 for rows in op.pull(computed[:, None].long())] if computed.any() else []
        if isinstance(op, Dense) and reads and not fold:
            reads[0] = _read_unfolded(op, reads[0], open_channels.get(name), need[op.inputs[0]])
        elif isinstance(op, Dense) and reads:
            reads[0] = reads[0] & open_channels.get(name, torch.ones_like(reads[0]))
            if op.groups == 1:
                alive = live[op.inputs[0]]
                plan.folded[name] = reads[0] & ~alive
                reads[0] = reads[0] & alive
        plan.reads[name] = reads
        for source, read in zip(op.inputs, reads, strict=False):
            need[source] |= read
        if computed.any():
            for source in graph.statics[name]:
                need[source][:] = True
            if isinstance(op, ReadShape):
                measured.update(op.inputs)
    return plan


def plan_heads(graph: ChannelGraph, main: Plan, open_channels: dict[str, Tensor]) -> Plan | None:
    """The plan of a network with its auxiliary heads, which read what the network has left of each value.

    Args:
        graph: The network with its heads.
        main: The plan of the network without.
        open_channels: The network's gates, as for :func:`make_plan`.

    Returns:
        None if nothing is left for a head to read, or if the heads would change what the network itself computes:
        something other than a convolution or a linear layer reads its values whole.
    """
    left: dict[str, Tensor] = {}
    readers: dict[str, Tensor] = {}
    for name, op in graph.ops.items():
        if name in main.computed and graph.nodes[name].op != "output":
            left[name] = main.kept(name)
            continue
        rows = [left[source] for source in op.inputs]
        if isinstance(op, Dense) and op.groups == 1:
            readers[name] = rows[0]
        left[name] = op.push([row[:, None].long() for row in rows])[:, 0] > 0
    if not all(reads.any() for reads in readers.values()):
        return None
    plan = make_plan(graph, {**open_channels, **readers})
    same = (
        torch.equal(plan.computed[name], computed) and torch.equal(plan.constant[name], main.constant[name])
        for name, computed in main.computed.items()
        if graph.nodes[name].op != "output"
    )
    return plan if all(same) else None


def _read_unfolded(op: Dense, wanted: Tensor, is_open: Tensor | None, needed: Tensor) -> Tensor:
    """The input channels of a gated layer in training: its open ones; if there are none, one unit stays, closed.

    Groups of a grouped convolution whose outputs are needed stay whole.
    """
    if is_open is None or op.groups > 1:
        return wanted
    kept = wanted & is_open
    if not kept.any():
        block = op.values[0].block
        first = int(needed.int().argmax()) // block * block  # one that others read costs nothing
        kept[first : first + block] = True
    return kept


def _everything(graph: ChannelGraph) -> dict[str, Tensor]:
    return {name: torch.ones(op.value.channels, dtype=torch.bool) for name, op in graph.ops.items()}


def _live(graph: ChannelGraph, open_channels: dict[str, Tensor]) -> dict[str, Tensor]:
    live: dict[str, Tensor] = {}
    for name, op in graph.ops.items():
        rows = [live[source] for source in op.inputs]
        if name in open_channels:
            rows = [rows[0] & open_channels[name]]
        live[name] = op.push([row[:, None].long() for row in rows])[:, 0] > 0
    return live
