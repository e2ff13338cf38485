"""Which gates decide together over one channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pgnas.nn.channels import Barrier, ChannelGraph, ChannelOp, Dense
from pgnas.nn.sites import Site


@dataclass(frozen=True)
class Coupled:
    """Channels with several gated readers.

    Attributes:
        origins: The nodes that produce them.
        channels: How many.
        readers: The gated layers.
    """

    origins: tuple[str, ...]
    channels: int
    readers: tuple[str, ...]


def gated_values(graph: ChannelGraph, sites: Sequence[Site]) -> set[str]:
    """The nodes whose channels a gate could remove: what the gated layers read, back to the layers that made it."""
    found: set[str] = set()
    waiting = [site.source for site in sites]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        op = graph.ops[name]
        if passes_channels(op):
            waiting += op.inputs
    return found


def coupled_values(graph: ChannelGraph, sites: Sequence[Site]) -> list[Coupled]:
    """The values that several gated layers read; values that are summed or multiplied count as one."""
    tied = find_tied(graph)
    readers: dict[str, list[str]] = {}
    for site in sites:
        for root in dict.fromkeys(tied[run.origin] for run in graph.sources(site.source)):
            readers.setdefault(root, []).append(site.layer)
    members: dict[str, list[str]] = {}
    for name, op in graph.ops.items():
        is_origin = op.source_runs() is None and not _joined(graph, name)
        if tied[name] in readers:
            members.setdefault(tied[name], []).extend([name] if is_origin else _parts(graph, name))
    return [
        Coupled(tuple(dict.fromkeys(members.get(root, [root]))), graph.value(root).channels, tuple(found))
        for root, found in readers.items()
        if len(found) > 1
    ]


def find_tied(graph: ChannelGraph, *, only: Callable[[str], bool] = lambda _: True) -> dict[str, str]:
    """Values whose channels operations join one to one: every node to one that stands for all it is joined with.

    Args:
        graph: The analysed network.
        only: Which nodes' operations join.
    """
    owner: dict[str, str] = {}

    def find(name: str) -> str:
        while owner.get(name, name) != name:
            name = owner[name]
        return name

    for name in filter(only, graph.ops):
        for origin in _joined(graph, name):
            first, second = find(origin), find(name)
            if first != second:
                owner[second] = first
    return {name: find(name) for name in graph.ops}


def _joined(graph: ChannelGraph, name: str) -> list[str]:
    """The origins whose channels an operation on several values (a sum) joins one to one with its own."""
    op = graph.ops[name]
    if not passes_channels(op) or op.source_runs() is not None:
        return []
    origins = []
    for source, value in zip(op.inputs, op.values, strict=True):
        runs = graph.sources(source)
        one_to_one = len(runs) == 1 and value.channels == graph.value(runs[0].origin).channels  # no flattened map
        if one_to_one and value.channels == op.value.channels:
            origins.append(runs[0].origin)
    return origins


def _parts(graph: ChannelGraph, name: str) -> list[str]:
    """The origins of the concatenations among the operands of a sum: each makes some of its channels."""
    op = graph.ops[name]
    if not passes_channels(op) or op.source_runs() is not None:
        return []
    runs = [graph.sources(source) for source in op.inputs]
    return [run.origin for found in runs if len(found) > 1 for run in found]


def passes_channels(op: ChannelOp) -> bool:
    """Whether an operation hands channels on, rather than making new ones."""
    return bool(op.inputs) and not isinstance(op, Barrier | Dense)
