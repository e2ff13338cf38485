"""An architecture: which slices of a supernet are kept, as a frozen value.

An architecture names no weights. It belongs to one *search space* (the names and sizes of a supernet's gates,
summarised by a digest), so that it is never applied to another supernet by mistake.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from pgnas.errors import ArchitectureError

FORMAT = "pgnas.architecture/1"
_MOST_UNITS = 10_000_000  # of one gate in a file: a damaged one must not fill the memory


@dataclass(frozen=True)
class Architecture:
    """The kept units (input channels, or whole groups of a grouped convolution) of every gate.

    Attributes:
        sizes: Gate name to its number of units.
        kept: Gate name to the indices of the units kept, ascending.
    """

    sizes: Mapping[str, int]
    kept: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        if set(self.sizes) != set(self.kept):
            odd = sorted(set(self.sizes) ^ set(self.kept))[0]
            raise ArchitectureError(
                f"architecture gate '{odd}'", "must have both a size and kept units", remedy="write both"
            )
        for name, kept in self.kept.items():
            size = self.sizes[name]
            if size < 1:
                raise ArchitectureError(
                    f"architecture gate '{name}'",
                    "must have at least one unit",
                    value=size,
                    remedy="check the file that it came from",
                )
            ascending = all(a < b for a, b in pairwise(kept))
            if not ascending or (kept and not (kept[0] >= 0 and kept[-1] < size)):
                raise ArchitectureError(
                    f"architecture gate '{name}'",
                    f"must keep ascending units in 0..{size - 1}",
                    value=format_ranges(kept),
                    remedy="check the file that it came from",
                )

    @cached_property
    def space(self) -> str:
        """The digest of the search space (gate names and sizes)."""
        return space_digest(self.sizes)

    @cached_property
    def digest(self) -> str:
        """A digest that two architectures share exactly when they keep the same slices of the same space."""
        text = self.space + json.dumps({name: list(self.kept[name]) for name in sorted(self.kept)})
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.digest == other.digest

    def flags(self, name: str) -> list[bool]:
        """Whether each unit of gate ``name`` is kept."""
        kept = set(self.kept[name])
        return [unit in kept for unit in range(self.sizes[name])]

    def share(self, name: str) -> float:
        """The share of the units of gate ``name`` that are kept, in [0, 1]."""
        return len(self.kept[name]) / self.sizes[name]

    def to_json(self) -> dict[str, Any]:
        """A JSON value; kept units are written as ranges (``"0-3,7"``) so that people can read them."""
        return {
            "format": FORMAT,
            "space": self.space,
            "digest": self.digest,
            "gates": {
                name: {"size": self.sizes[name], "kept": format_ranges(self.kept[name])} for name in sorted(self.sizes)
            },
        }

    @classmethod
    def from_json(cls, value: Any, *, subject: str = "architecture") -> Architecture:
        """The inverse of :meth:`to_json`.

        Raises:
            ArchitectureError: ``value`` is of another format or its digest does not match its content.
        """
        remedy = "use an architecture.json or a candidate written by pgnas"
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ArchitectureError(subject, f"must be of format {FORMAT}", remedy=remedy)
        try:
            gates = {str(name): (int(gate["size"]), str(gate["kept"])) for name, gate in value["gates"].items()}
            kept = {name: parse_ranges(text, size) for name, (size, text) in gates.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArchitectureError(subject, "must list each gate's size and kept units", remedy=remedy) from error
        found = cls({name: size for name, (size, _) in gates.items()}, kept)
        if value.get("digest") not in (None, found.digest):
            raise ArchitectureError(subject, "must match its own digest", value=value["digest"], remedy=remedy)
        return found

    def require_space(self, sizes: Mapping[str, int]) -> None:
        """Check that this architecture belongs to the search space with these gate sizes.

        Raises:
            ArchitectureError: It does not; the first difference is named.
        """
        if self.space == space_digest(sizes):
            return
        for name in sorted(set(sizes) | set(self.sizes)):
            here, there = self.sizes.get(name), sizes.get(name)
            if here != there:
                raise ArchitectureError(
                    f"architecture gate '{name}'",
                    f"must have the supernet's size {there if there is not None else '(no such gate)'}",
                    value=here if here is not None else "no such gate",
                    remedy="use it with the supernet that it was sampled from",
                )


def space_digest(sizes: Mapping[str, int]) -> str:
    """The digest of a search space: its gates' names and sizes, in no particular order."""
    text = json.dumps({name: sizes[name] for name in sorted(sizes)})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def format_ranges(indices: Sequence[int]) -> str:
    """Ascending integers as ranges: ``[0, 1, 2, 7]`` becomes ``"0-2,7"``."""
    parts: list[str] = []
    start = previous = None
    for index in [*indices, None]:
        if index is not None and previous is not None and index == previous + 1:
            previous = index
            continue
        if start is not None:
            parts.append(str(start) if start == previous else f"{start}-{previous}")
        start = previous = index
    return ",".join(parts)


def parse_ranges(text: str, size: int) -> tuple[int, ...]:
    """The inverse of :func:`format_ranges`, for indices below ``size``.

    Raises:
        ValueError: ``text`` is not made of ascending ranges below ``size``.
    """
    indices: list[int] = []
    for part in text.split(",") if text else []:
        low, dash, high = part.partition("-")
        first, last = int(low), int(high if dash else low)
        if not 0 <= first <= last < min(size, _MOST_UNITS) or (indices and first <= indices[-1]):
            raise ValueError(f"range {part!r} is not ascending below {size}")
        indices.extend(range(first, last + 1))
    return tuple(indices)


def unique(architectures: Iterable[Architecture]) -> list[Architecture]:
    """The distinct architectures, in order of first appearance."""
    return list({architecture.digest: architecture for architecture in architectures}.values())
