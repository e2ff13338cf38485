"""The registry of named data sets, and what a source of data hands over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pgnas.data.dataset import Split
from pgnas.errors import DataError


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


def require_two_classes(subject: str, class_names: Sequence[str]) -> None:
    """Check that there is something to tell apart.

    Raises:
        DataError: There are fewer than two classes.
    """
    if len(class_names) < 2:
        found = f"only {class_names[0]!r}" if class_names else "none"
        remedy = "point at data of two classes or more (a folder: the one whose sub-folders are the classes)"
        raise DataError(subject, "needs images of at least two classes", value=found, remedy=remedy)
