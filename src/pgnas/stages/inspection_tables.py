"""An inspection as sections of tables, for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from pgnas.nn.inspection import GatedLayer, Inspection, SourceUnits, UngatedLayer
from pgnas.stages.name_ranges import merge_names

_LONGEST_NAME = 26  # longer layer names stand below a heading with what they begin with
_DEEPEST_HEADING = 5


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        numeric: Whether it is aligned to the right.
        optional: Whether it is left out where there is no room.
    """

    title: str
    numeric: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Section:
    """A titled table, or a titled list.

    Attributes:
        title: Its heading.
        columns: The columns, if there is a table.
        rows: The table's rows; one with a single cell is a heading of the rows below it.
        entries: The list: a line each, and what belongs below it.
        quiet: Whether it matters less than the others.
    """

    title: str
    columns: tuple[Column, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    entries: tuple[tuple[str, str], ...] = ()
    quiet: bool = False


def sections(found: Inspection) -> list[Section]:
    """All there is to say, the totals last; sections without content are left out."""
    made = [
        _gated(found),
        _choices(found),
        _concatenated(found),
        _coupled(found),
        _tied(found),
        _ungated(found),
        _barriers(found, touching=True),
        _barriers(found, touching=False),
        Section("Notes", entries=tuple((note, "") for note in found.notes)),
        _totals(found),
    ]
    return [section for section in made if section.rows or section.entries]


def amount(number: float) -> str:
    """A count for people: ``950``, ``36.9k``, ``115.6M``, ``1.81G``."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.2f}{unit}" if unit == "G" else f"{number / scale:.1f}{unit}"
    return f"{number:.0f}"


def _share(part: float, whole: float) -> str:
    share = part / whole if whole else 0.0
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _gated(found: Inspection) -> Section:
    columns = (
        Column("layer"),
        Column("kind"),
        Column("units", numeric=True),
        Column("params", numeric=True),
        Column("MACs", numeric=True),
        Column("share", numeric=True),
        Column("reads", optional=True),
    )
    rows: list[tuple[str, ...]] = []
    for heading, entries in _below_headings(found.gated):
        rows += [(heading,)] if heading else []
        rows += [
            (
                "  " + layer.layer.removeprefix(heading + ".") if heading else layer.layer,
                layer.kind,
                str(layer.units),
                amount(layer.params),
                amount(layer.macs),
                _share(layer.macs, found.macs),
                layer.sources[0].origin if len(layer.sources) == 1 else f"{len(layer.sources)} sources",
            )
            for layer in entries
        ]
    share = _share(sum(layer.macs for layer in found.gated), found.macs)
    title = f"Gated at their input: {_count(len(found.gated), 'layer')}, {share} of the MACs"
    return Section(title, columns, tuple(rows))


def _below_headings(layers: Sequence[GatedLayer]) -> Iterable[tuple[str, list[GatedLayer]]]:
    """The layers below what their names begin with, as deep as it takes for the rest to be short."""

    def heading(layer: GatedLayer, depth: int) -> str:
        parts = layer.layer.split(".")
        return ".".join(parts[: min(depth, len(parts) - 1)])

    def longest(depth: int) -> int:
        return max(len(layer.layer) - len(heading(layer, depth)) for layer in layers)

    depths = range(_DEEPEST_HEADING + 1)
    depth = next((depth for depth in depths if longest(depth) <= _LONGEST_NAME), _DEEPEST_HEADING)
    return [(key, list(rows)) for key, rows in groupby(layers, lambda layer: heading(layer, depth))]


def _choices(found: Inspection) -> Section:
    entries = [
        (f"{'one' if choice.exclusive else 'any'} of {', '.join(choice.options)}", _joined(choice.places))
        for choice in found.choices
    ]
    return Section(f"Operations to choose from: {_count(len(found.choices), 'gate')}", entries=tuple(entries))


def _concatenated(found: Inspection) -> Section:
    """Layers that read several sources; those that read the same are one entry."""
    alike: dict[tuple[SourceUnits, ...], list[str]] = {}
    for layer in found.gated:
        if len(layer.sources) > 1:
            alike.setdefault(layer.sources, []).append(layer.layer)
    entries = [
        (f"{_joined(layers)} reads {len(sources)} sources:", ", ".join(_sources(sources)))
        for sources, layers in alike.items()
    ]
    return Section("Concatenated inputs: each source is a group", entries=tuple(entries))


def _sources(sources: Iterable[SourceUnits]) -> list[str]:
    """``features.conv0 64``, ``denselayer{1-5}.conv2 32 each``."""
    by_units: dict[int, list[str]] = {}
    for source in sources:
        by_units.setdefault(source.units, []).append(source.origin)
    return [
        f"{name} {units} each" if "{" in name else f"{name} {units}"
        for units, names in by_units.items()
        for name in merge_names(names)
    ]


def _coupled(found: Inspection) -> Section:
    alike: dict[tuple[tuple[str, ...], int], list[str]] = {}
    for value in found.coupled:
        alike.setdefault((value.readers, value.channels), []).extend(value.origins)
    entries = [
        (f"{channels} channels of {_joined(origins)}", f"read by {_joined(readers)}")
        for (readers, channels), origins in alike.items()
    ]
    return Section("Shared values: a channel goes when all of its readers close it", entries=tuple(entries))


def _tied(found: Inspection) -> Section:
    gates = [("layers with one gate", _joined(names)) for names in found.tied_gates]
    weights = [("names of one tensor", _joined(names)) for names in found.tied_weights]
    return Section("Tied", entries=(*gates, *weights))


def _ungated(found: Inspection) -> Section:
    reasons: dict[str, list[UngatedLayer]] = {}
    for layer in found.ungated:
        reasons.setdefault(layer.reason, []).append(layer)
    entries = []
    for reason, layers in reasons.items():
        share = _share(sum(layer.macs for layer in layers), found.macs)
        head = f"{_count(len(layers), 'layer')}, {share} of the MACs: {reason}"
        entries.append((head, _joined(layer.layer for layer in layers)))
    return Section(f"Not gated: {_count(len(found.ungated), 'layer')}", entries=tuple(entries))


def _barriers(found: Inspection, *, touching: bool) -> Section:
    reasons: dict[str, list[str]] = {}
    for barrier in found.barriers:
        if barrier.touches_gates == touching:
            reasons.setdefault(barrier.reason, []).append(barrier.operation)
    count = _count(sum(map(len, reasons.values())), "operation")
    loud = f"Barriers: {count} that keep channels whose gates close"
    title = loud if touching else f"Kept whole, but no gated channels: {count}"
    entries = [(f"{len(names)} x {reason}", _joined(names)) for reason, names in reasons.items()]
    return Section(title, entries=tuple(entries), quiet=not touching)


def _totals(found: Inspection) -> Section:
    shapes = ", ".join(str(shape) for shape in found.inputs)
    logits = ", ".join(f"{number:,} ({name})" for name, number in found.logits.items())
    params, macs = found.smallest_params, found.smallest_macs
    rows = (
        ("input", shapes),
        ("parameters", f"{found.params:,}"),
        ("multiply-adds", f"{found.macs:,}"),
        ("binary variables", f"{found.units:,}"),
        ("architectures", f"10^{found.log10_architectures:,.0f}"),
        ("logits by granularity", logits),
        (
            "with one unit a gate",
            f"{params:,} parameters ({_share(params, found.params)}), "
            f"{macs:,} multiply-adds ({_share(macs, found.macs)})",
        ),
    )
    return Section(found.model, (Column(""), Column("")), rows)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _joined(names: Iterable[str]) -> str:
    return ", ".join(merge_names(names))
