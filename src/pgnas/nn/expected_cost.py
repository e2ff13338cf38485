"""The expected cost of a supernet as a polynomial in its gates: the declared surrogate of :class:`BilinearCost`.

A layer costs (kept inputs) x (needed outputs) and so much a needed output, where an output is needed if any gate that
reads it is open, and the operations that its reader is part of are. It differs from the extracted network where a gated
layer has no reader or no live input left, where an operation that cannot be shrunk is not used at all, and where one
layer reads a channel through several of its units (a concatenation of a value and of a sum with it), which counts as
always needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from pgnas.bayes import BilinearCost
from pgnas.nn.channels import Barrier, ChannelGraph, Dense
from pgnas.nn.coupling import passes_channels
from pgnas.nn.prices import Price, Prices
from pgnas.nn.sites import Site


def expected_cost(
    graph: ChannelGraph,
    sites: Sequence[Site],
    sizes: dict[str, int],
    prices: Prices,
    *,
    choice: Tensor | None = None,
) -> BilinearCost:
    """The expected cost as a function of the gates' keep logits.

    Args:
        graph: The analysed network.
        sites: Its gated layers.
        sizes: Gate name to its number of units, in the order of the logits.
        prices: What every operation costs.
        choice: The choice that each unit is an option of, -1 for independent ones, (U,); None: all are independent.
    """
    within = _operations_within(graph, sites)
    reading = _Readers(graph, sites, within)
    readers = reading.walk()
    surrogate = _Surrogate(graph, sites, sizes, prices, reading.joint, within)
    for name, rows in readers:
        surrogate.add(name, rows)
    return surrogate.build(choice)


Within = Mapping[str, Sequence[Site]]


def _operations_within(graph: ChannelGraph, sites: Sequence[Site]) -> dict[str, list[Site]]:
    """Values that layers of an operation make for its output alone: node to the operations' sites, innermost first.

    What enters an operation is none of these, be it passed through an activation first.
    """
    users: dict[str, set[str]] = {name: set() for name in graph.ops}
    for name, op in graph.ops.items():
        for source in op.inputs:
            users[source].add(name)
    inside: list[tuple[Site, set[str]]] = []
    for site in sites:
        found = {site.node}
        for name in reversed(graph.ops) if site.option is not None else ():
            if users[name] and users[name] <= found:
                found.add(name)
        made: set[str] = set()
        for name in filter(found.__contains__, graph.ops if len(found) > 1 else ()):
            op = graph.ops[name]
            is_layer = not passes_channels(op) or graph.macs(name) or graph.own_parameters(name)
            if is_layer or not made.isdisjoint(op.inputs):
                made.add(name)
        inside.append((site, made - {site.node}))
    inside.sort(key=lambda entry: len(entry[1]))
    return {name: [site for site, made in inside if name in made] for name in graph.ops}


def always_read(graph: ChannelGraph, sites: Sequence[Site]) -> dict[str, Tensor]:
    """Which channels of every node's value are read whatever the gates of ``sites`` say, each bool (channels,)."""
    return {name: rows[:, 0] > 0 for name, rows in _Readers(graph, sites, {}).walk()}


class _Readers:
    """Who reads each channel, found backwards.

    Symbolic rows have one column a site plus column 0 for "always": entry (c, 1 + s) is 1 + the unit of site s that
    reads channel c, or 0. What is read through the output of an operation has columns of its own, one for each reader
    behind it; through several such outputs one after another, only the first counts.

    Args:
        graph: The analysed network.
        sites: Its gated layers.
        within: As of :func:`_operations_within`; a layer without a gate reads these values if the operation is open.

    Attributes:
        joint: (Column of an operation's output, column of a reader behind it) to their column.
    """

    def __init__(self, graph: ChannelGraph, sites: Sequence[Site], within: Within) -> None:
        self.graph, self._within = graph, within
        self.sites = {site.node: (1 + index, site) for index, site in enumerate(sites)}
        self.columns = self._of_sites = 1 + len(sites)
        self.joint: dict[tuple[int, int], int] = {}

    def walk(self) -> list[tuple[str, Tensor]]:
        """The readers of every node's channels, last node first."""
        rows = {name: self._nobody(op.value.channels) for name, op in self.graph.ops.items()}
        for name in reversed(self.graph.ops):
            op = self.graph.ops[name]
            if self.graph.nodes[name].op == "output":
                rows[name][:, 0] = 1
            for source, read in zip(op.inputs, self._reads(name, rows[name]), strict=True):
                rows[source] = _join(self._widened(rows[source]), self._widened(read))
        return list(reversed(rows.items()))

    def _widened(self, rows: Tensor) -> Tensor:
        """Rows with a column for everything known by now."""
        return nn.functional.pad(rows, (0, self.columns - rows.shape[1]))

    def _through(self, column: int, site: Site, rows: Tensor) -> Tensor:
        """Who reads an operation's output, given who reads what it is handed on to: both gates must be open."""
        behind = [j for j in range(1, self._of_sites) if j < rows.shape[1] and rows[:, j].any()]
        for j in behind:
            if (column, j) not in self.joint:
                self.joint[column, j] = self.columns
                self.columns += 1
        read = self._nobody(len(rows))
        alone = (rows[:, :1] > 0).any(1) | (rows[:, self._of_sites :] > 0).any(1)
        read[alone, column] = 1 + site.unit_of_channel[alone]
        for j in behind:
            read[:, self.joint[column, j]] = rows[:, j]
        return read

    def _reads(self, name: str, rows: Tensor) -> list[Tensor]:
        op = self.graph.ops[name]
        if name in self.sites:
            column, site = self.sites[name]
            if site.option is not None:
                return [self._through(column, site, rows)]
            read = self._nobody(len(site.unit_of_channel))
            read[:, column] = 1 + site.unit_of_channel
            return [read]
        if isinstance(op, Barrier) or (isinstance(op, Dense) and op.groups == 1):
            # Read whatever the gates say, as long as the value is used at all and the operation it belongs to open.
            reads = [self._nobody(value.channels) for value in op.values]
            for source, read in zip(op.inputs, reads, strict=True):
                innermost = self._within.get(source, ())[:1]
                for site in innermost:
                    read[:, self.sites[site.node][0]] = (1 + site.unit_of_channel[0]) * int(rows.any())
                if not innermost:
                    read[:, 0] = int(rows.any())
            return reads
        return _pull(op.pull, rows)

    def _nobody(self, channels: int) -> Tensor:
        return torch.zeros(channels, self.columns, dtype=torch.long)


def _pull(pull: Callable[[Tensor], list[Tensor]], rows: Tensor) -> list[Tensor]:
    """Pull symbolic rows; where channels with different units meet in one, the result is "always"."""
    top = int(rows.max()) + 1
    high, low = pull(rows), pull(torch.where(rows > 0, top - rows, 0))
    result = []
    for most, least in zip(high, low, strict=True):
        mixed = ((most[:, 1:] > 0) & (most[:, 1:] != top - least[:, 1:])).any(1)
        most = most.clone()
        most[mixed, 0] = 1
        result.append(most)
    return result


def _join(a: Tensor, b: Tensor) -> Tensor:
    """Union of readers; the same site reading two different units of one channel counts as "always"."""
    joined = torch.maximum(a, b)
    mixed = ((a > 0) & (b > 0) & (a != b))[:, 1:].any(1)
    joined[mixed, 0] = 1
    return joined


@dataclass(frozen=True)
class _Layer:
    """One row of the surrogate: what it costs a pair and an output, and which of the node's channels its outputs are.

    Attributes:
        per_pair: Cost of an (open input unit, needed output) pair.
        per_output: Cost of a needed output.
        fixed_inputs: Inputs that are always there.
        outputs: Channels of each output, shape (outputs, channels an output).
    """

    per_pair: float
    per_output: float
    fixed_inputs: float
    outputs: Tensor


class _Surrogate:
    """Collects the index tensors of a :class:`BilinearCost`."""

    def __init__(
        self,
        graph: ChannelGraph,
        sites: Sequence[Site],
        sizes: dict[str, int],
        prices: Prices,
        joint: Mapping[tuple[int, int], int],
        within: Within,
    ) -> None:
        self.graph, self.prices = graph, prices
        self.site_of_node = {site.node: site for site in sites}
        self.units = sum(sizes.values())
        slot_units: list[Tensor] = []
        firsts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
        closing: list[Tensor] = []  # beside its reader's unit a slot may have an operation's, and a stream's

        def slots_of(site: Site, operations: Sequence[int]) -> int:
            """A slot a unit of a site, not a channel: the channels of one unit are read together. Their first."""
            start, units = sum(len(units) for units in slot_units), torch.arange(sizes[site.gate])
            slot_units.append(firsts[site.gate] + units)
            closing.append(self._streams(site, firsts, start))
            closing.extend(torch.stack([start + units, torch.full_like(units, unit)]) for unit in operations)
            return start

        around = {
            site.node: [firsts[o.gate] + (o.option or 0) for o in within[site.source] if o is not site]
            for site in sites
        }
        inputs = [slots_of(site, around[site.node] if site.option is not None else ()) for site in sites]
        self.first_slot = dict(zip(self.site_of_node, inputs, strict=True))
        # What is made within an operation is needed if that is open: by slots of their own, as a layer's inputs are
        # counted without it.
        inner = [site for site in sites if site.option is None and around[site.node]]
        reading = {site.node: slots_of(site, around[site.node]) for site in inner}
        self.slot_starts = [reading.get(site.node, start) for site, start in zip(sites, inputs, strict=True)]
        for operation, reader in joint:  # in the order of their columns
            option, behind = sites[operation - 1], sites[reader - 1]
            chosen = [firsts[option.gate] + (option.option or 0), *around[option.node], *around[behind.node]]
            self.slot_starts.append(slots_of(behind, chosen))
        self.slot_unit = torch.cat(slot_units)
        self.slot_layer = torch.full((len(self.slot_unit),), -1)
        self.entries = [torch.stack([torch.arange(len(self.slot_unit)), self.slot_unit]), *closing]
        self.entries += [self._groups_behind(site, firsts, self.first_slot[site.node]) for site in sites]
        self.entries += [self._groups_behind(site, firsts, reading[site.node]) for site in inner]
        self.layers: list[_Layer] = []
        self.outputs = 0
        self.always: list[Tensor] = []
        self.readings: list[Tensor] = []

    @staticmethod
    def _streams(site: Site, firsts: dict[str, int], slot: int) -> Tensor:
        """(slot, unit) entries of the stream gates that a site's slots, from ``slot`` on, obey as well."""
        units = site.stream_units(firsts, without=-1)
        obeys = units >= 0
        return torch.stack([slot + site.unit_of_channel[obeys], units[obeys]])

    def _groups_behind(self, site: Site, firsts: dict[str, int], first: int) -> Tensor:
        """(slot, unit) entries of channels that a gated group makes: they are alive only if that group is open too."""
        op, found = self.graph.ops[site.node], [torch.empty(2, 0, dtype=torch.long)]
        if isinstance(op, Dense) and op.groups == 1 and op.values[0].block == 1:
            for run in self.graph.sources(op.inputs[0]):
                origin, gated = self.graph.ops[run.origin], self.site_of_node.get(run.origin)
                if gated is not None and isinstance(origin, Dense) and origin.groups > 1:
                    in_unit = site.channels_in_unit
                    units = site.unit_of_channel[run.start : run.start + run.channels].reshape(-1, in_unit)
                    group = (torch.arange(run.channels) // (run.channels // origin.groups)).reshape(-1, in_unit)
                    found.append(torch.stack([first + units[:, 0], firsts[gated.gate] + group[:, 0]]))
        return torch.cat(found, 1)

    def add(self, name: str, rows: Tensor) -> None:
        """Add a node's cost, given who reads its channels."""
        layers = self._layers(name)
        if name in self.site_of_node and layers:
            site, first = self.site_of_node[name], self.first_slot[name]
            units, op = int(site.unit_of_channel.max()) + 1, self.graph.ops[name]
            by_group = isinstance(op, Dense) and op.groups > 1  # then a unit is a group, with a row of its own
            own = torch.arange(units) if by_group else torch.zeros(units, dtype=torch.long)
            self.slot_layer[first : first + units] = len(self.layers) + own
        for layer in layers:
            self._add_outputs(rows[layer.outputs] if layer.outputs.numel() else None)
        self.layers += layers

    def _add_outputs(self, rows: Tensor | None) -> None:
        """Outputs with the readers ``rows`` (outputs, channels an output, columns); None for one always needed."""
        if rows is None:
            self.always.append(torch.ones(1, dtype=torch.bool))
            self.outputs += 1
            return
        output, channel, column = rows[:, :, 1:].nonzero(as_tuple=True)
        unit = rows[output, channel, 1 + column] - 1
        self.readings.append(torch.stack([self.outputs + output, torch.tensor(self.slot_starts)[column] + unit]))
        self.always.append((rows[:, :, 0] > 0).any(1))
        self.outputs += len(rows)

    def _layers(self, name: str) -> list[_Layer]:
        """The rows that describe a node's cost: one a group of a grouped convolution, one for other layers."""
        op, price = self.graph.ops[name], self.prices.get(name, Price())
        constant = [_Layer(0.0, price.constant, 0.0, torch.empty(0))] if price.constant else []
        if not price.pair and not price.output:
            return constant
        channels = torch.arange(op.value.channels)[:, None]
        if not isinstance(op, Dense):  # one input an output
            return [_Layer(0.0, price.pair + price.output, 0.0, channels), *constant]
        site = self.site_of_node.get(name)
        if op.groups == 1:
            in_unit = 1 if site is None else site.channels_in_unit
            fixed = 0.0 if site else op.values[0].channels
            return [_Layer(price.pair * in_unit, price.output, fixed, channels), *constant]
        in_group = channels.reshape(op.groups, 1, -1)  # computed whole, if its gate is open and any of it is needed
        cost = in_group.shape[2] * (op.per_group * price.pair + price.output)
        return [*(_Layer(cost, 0.0, 0.0 if site else 1.0, group) for group in in_group), *constant]

    def build(self, choice: Tensor | None) -> BilinearCost:
        """Assemble."""
        reading = torch.cat(self.readings, 1)
        entries = torch.cat(self.entries, 1)
        counts = torch.cat([torch.full((max(1, len(layer.outputs)),), i) for i, layer in enumerate(self.layers)])
        return BilinearCost(
            units=self.units,
            slot_layer=self.slot_layer,
            entry_slot=entries[0],
            entry_unit=entries[1],
            fixed_inputs=torch.tensor([layer.fixed_inputs for layer in self.layers]),
            output_layer=counts,
            output_always=torch.cat(self.always),
            reader_output=reading[0],
            reader_slot=reading[1],
            layer_weight=torch.tensor([layer.per_pair for layer in self.layers]),
            output_weight=torch.tensor([layer.per_output for layer in self.layers]),
            choice=None if choice is None else choice.cpu(),
        )
