"""Stream gates: one gate for a value that several layers read, or for values that sums and products tie together.

A channel of a residual stage leaves only if every one of its readers closes it, which independent gates hardly ever do
all at once. So the stage has a gate as well, and a reader sees a channel only if both its own
gate and the stream's are open: closing one unit closes the channel everywhere, and whole stages widen or thin. What is
still in the readers' own gates is which of the stage's channels each of them does without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pgnas.nn.channels import ChannelGraph, Dense
from pgnas.nn.channels.rules_shapes import Elementwise
from pgnas.nn.coupling import find_tied
from pgnas.nn.expected_cost import always_read
from pgnas.nn.gate import GateSpec, Group
from pgnas.nn.sites import SearchSpace, Site, StreamPart, made_by_heads

STREAM_GRANULARITIES = ("channel", "product")
"""Where streams have gates: one logit for all of a stage could only drop the stage."""


@dataclass(frozen=True)
class _Reading:
    """Channels from ``start`` on that a site reads of the values tied to ``root``, and which ones, (channels,).

    ``made`` is how many there are, and ``heads`` whether they are the heads of an attention.
    """

    site: Site
    root: str
    start: int
    units: Tensor
    made: int
    heads: bool


def add_streams(graph: ChannelGraph, space: SearchSpace) -> SearchSpace:
    """The search space with a stream gate for every value, or class of values tied by sums, that several gates read.

    There is none where something without a gate reads the values anyway, so that no gate could save them; where all
    readers share a gate already; where a grouped convolution reads them by whole groups; and where the readers disagree
    about what a channel is (a pixel of a flattened map is a channel of its own for a layer that makes the like).

    Args:
        graph: The analysed network.
        space: Its gates.
    """
    tied = find_tied(graph, only=lambda name: isinstance(graph.ops[name], Elementwise))
    readings = [reading for site in space.sites for reading in _readings(graph, site, tied)]
    always = always_read(graph, space.all_sites)
    streams: dict[str, GateSpec] = {}
    in_unit: dict[str, int] = {}
    for root in dict.fromkeys(reading.root for reading in readings):
        found = [reading for reading in readings if reading.root == root]
        whole = any(_by_group(graph, reading.site) for reading in found)
        agree = len({reading.made for reading in found}) == 1
        if agree and not whole and len({reading.site.gate for reading in found}) > 1 and not always[root].all():
            heads = any(reading.heads for reading in found)
            in_unit[root] = 1 if heads else math.gcd(space.channels_per_gate, found[0].made)
            units, name = found[0].made // in_unit[root], f"stream:{found[0].site.layer}"
            if any(name == spec.name for spec in streams.values()):  # a layer may read several streams first
                name = f"{name}:{root}"
            streams[root] = GateSpec(name, units, (Group(root, 0, units),))
    readings = [replace(r, units=r.units // in_unit.get(r.root, 1)) for r in readings]
    sites = [replace(site, streams=_parts(site, readings, streams)) for site in space.sites]
    independent = [spec for spec in space.gates if not spec.exclusive]
    exclusive = [spec for spec in space.gates if spec.exclusive]
    return replace(space, sites=tuple(sites), gates=(*independent, *streams.values(), *exclusive))


def _readings(graph: ChannelGraph, site: Site, tied: dict[str, str]) -> list[_Reading]:
    found = []
    for run in graph.sources(site.source):
        made = _made(graph, run.origin)
        if made and run.channels % made == 0:  # else a part of what was made
            units = torch.arange(made).repeat_interleave(run.channels // made)
            heads = made_by_heads(graph, run.origin)
            found.append(_Reading(site, tied[run.origin], run.start, units, made, heads))
    return found


def _made(graph: ChannelGraph, origin: str) -> int:
    """How many channels a node makes; the pixels of a flattened map are one."""
    value = graph.value(origin)
    return value.channels // value.block


def _by_group(graph: ChannelGraph, site: Site) -> bool:
    op = graph.ops[site.node]
    return isinstance(op, Dense) and op.groups > 1


def _parts(site: Site, readings: Sequence[_Reading], streams: dict[str, GateSpec]) -> tuple[StreamPart, ...]:
    """The parts of a site's input that obey a stream gate, in order."""
    own = [reading for reading in readings if reading.site is site and reading.root in streams]
    return tuple(StreamPart(streams[reading.root].name, reading.start, reading.units) for reading in own)
