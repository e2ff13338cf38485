"""The registry of named data sets, and what a source of data hands over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pgnas.data.dataset import Split


@dataclass(frozen=True, eq=False)
class RawData:
    """What a source read, before it is split.

    Attributes:
        class_names: Name of each label of ``train``; at least two.
        train: All images that are not test images.
        test: The source's own test images; ``None``: it has none, and a part of ``train`` becomes test.
        flip: Whether a mirrored image is still of its class; ``None``: unknown.
        notes: What was decided or skipped while reading, one sentence each.
    """

    class_names: tuple[str, ...]
    train: Split
    test: Split | None
    flip: bool | None = True
    notes: tuple[str, ...] = ()


Reader = Callable[[int | None], RawData]


@dataclass(frozen=True)
class Source:
    """A data set that has a name.

    Attributes:
        name: As in ``--data name``.
        description: One line.
        read: From the side in pixels that images shall have (``None``: as they are) to the data.
    """

    name: str
    description: str
    read: Reader


_SOURCES: dict[str, Source] = {}


def register(name: str, description: str) -> Callable[[Reader], Reader]:
    """Make the decorated reader available as ``load_data(name)``.

    Raises:
        ValueError: The name is taken.
    """

    def keep(read: Reader) -> Reader:
        if name in _SOURCES:
            raise ValueError(f"data set {name!r} is registered already; choose another name")
        _SOURCES[name] = Source(name, description, read)
        return read

    return keep


def registered_sources() -> tuple[Source, ...]:
    """All named data sets, by name."""
    return tuple(_SOURCES[name] for name in sorted(_SOURCES))
