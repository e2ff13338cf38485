"""The registry of sources of data, and what a source hands over."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pgnas.data.splits import AnyAugmentation, Examples
from pgnas.errors import DataError

Augment = Literal["auto", "on", "off"]


@dataclass(frozen=True, eq=False)
class RawData:
    """What a source read, before it is split.

    Attributes:
        class_names: Name of each label of ``train``; at least two.
        train: All examples that are in no other split.
        test: The source's own test examples; ``None``: it has none, and a part of ``train`` becomes test.
        flip: Whether a mirrored image is still of its class; ``None``: unknown.
        notes: What was decided or skipped while reading, one sentence each.
        validation: The source's own validation examples; ``None``: a part of ``train`` becomes validation.
        augmentation: What ``--augment`` means for these examples; ``None``: what it means for images in memory.
    """

    class_names: tuple[str, ...]
    train: Examples
    test: Examples | None
    flip: bool | None = True
    notes: tuple[str, ...] = ()
    validation: Examples | None = None
    augmentation: Callable[[Augment], AnyAugmentation] | None = None


@dataclass(frozen=True)
class Request:
    """What a source is asked for.

    Attributes:
        image_size: Side in pixels that examples shall have; ``None``: as they are, or what the source holds usual.
        path: The file or folder of a source that takes one, else empty.
        options: Values of the options given, by name; those not given are missing.
    """

    image_size: int | None
    path: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


Reader = Callable[[Request], RawData]
Option = Callable[[str], object]
"""From what the user wrote to a value; a ``ValueError`` says what it must be."""


@dataclass(frozen=True)
class Source:
    """A kind of data that has a name.

    Attributes:
        name: As in ``--data name`` or ``--data name:PATH:option=value``.
        description: One line.
        read: From what is asked for to the data.
        takes_path: Whether a path follows the name.
        options: What may follow the path.
    """

    name: str
    description: str
    read: Reader
    takes_path: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)


_SOURCES: dict[str, Source] = {}


def register(name: str, description: str) -> Callable[[Callable[[int | None], RawData]], Callable[..., RawData]]:
    """Make the decorated reader, which takes the side in pixels, available as ``load_data(name)``.

    Raises:
        ValueError: The name is taken.
    """

    def keep(read: Callable[[int | None], RawData]) -> Callable[[int | None], RawData]:
        _keep(Source(name, description, lambda request: read(request.image_size)))
        return read

    return keep


def register_path(name: str, description: str, **options: Option) -> Callable[[Reader], Reader]:
    """Make the decorated reader available as ``load_data("name:PATH:option=value,...")``.

    Raises:
        ValueError: The name is taken.
    """

    def keep(read: Reader) -> Reader:
        _keep(Source(name, description, read, takes_path=True, options=options))
        return read

    return keep


def _keep(source: Source) -> None:
    if source.name in _SOURCES:
        raise ValueError(f"data set {source.name!r} is registered already; choose another name")
    _SOURCES[source.name] = source


def registered_sources() -> tuple[Source, ...]:
    """All sources of data, by name."""
    return tuple(_SOURCES[name] for name in sorted(_SOURCES))


def whole(low: int, high: int) -> Option:
    """An option that is a whole number in low..high."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"a whole number in {low}..{high}")
        return int(text)

    return read


def choice(**values: object) -> Option:
    """An option that is one of some words, each with what it means."""

    def read(text: str) -> object:
        if text not in values:
            raise ValueError(f"one of {', '.join(values)}")
        return values[text]

    return read


def require_two_classes(subject: str, class_names: Sequence[str]) -> None:
    """Check that there is something to tell apart.

    Raises:
        DataError: There are fewer than two classes.
    """
    if len(class_names) < 2:
        found = f"only {class_names[0]!r}" if class_names else "none"
        remedy = "point at data of two classes or more (a folder: the one whose sub-folders are the classes)"
        raise DataError(subject, "needs examples of at least two classes", value=found, remedy=remedy)
