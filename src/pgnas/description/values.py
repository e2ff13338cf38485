"""Arguments of operations and layers as JSON, and back.

None, booleans, integers, finite floats and known words stand for themselves and a JSON array is a Python list; all else
is an object with one key that says what it is: ``{"node": "conv1"}``, ``{"tuple": [1, 2]}``, ``{"slice": [0, null,
2]}``, ``{"range": [0, 4, 1]}``, ``{"float": "-inf"}``, ``{"dtype": "float32"}``,
``{"memory_format": "channels_last"}``, ``{"ellipsis": null}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from pgnas.description.errors import DescriptionError
from pgnas.description.operations import ATTRIBUTES, DTYPES, MEMORY_FORMATS, WORDS, is_equation

_DEEPEST = 8
_LONGEST = 4096
_LARGEST = 2**63 - 1

Nodes = Mapping[str, fx.Node]


def encode(value: Any, part: str, names: Mapping[fx.Node, str] | None = None) -> Any:
    """A value as JSON.

    Args:
        value: An argument.
        part: Whose argument it is, for the error.
        names: What to call the nodes that it refers to.

    Raises:
        DescriptionError: A description cannot hold such a value.
    """
    match value:
        case None | bool():
            return value
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else {"float": str(float(value))}
        case str():
            return _text(value, part)
        case fx.Node():
            return {"node": (names or {})[value]}
        case list():
            return [encode(item, part, names) for item in value]
        case tuple():
            return {"tuple": [encode(item, part, names) for item in value]}
        case slice():
            return {"slice": [encode(item, part, names) for item in (value.start, value.stop, value.step)]}
        case range():
            return {"range": [value.start, value.stop, value.step]}
        case torch.dtype():
            return {"dtype": str(value).removeprefix("torch.")}
        case torch.memory_format():
            return {"memory_format": str(value).removeprefix("torch.")}
        case _ if value is ...:
            return {"ellipsis": None}
    raise DescriptionError(part, "must use plain values", type(value).__name__)


def decode(value: Any, part: str, nodes: Nodes, depth: int = 0) -> Any:
    """The inverse of :func:`encode`, of a value that nobody vouches for.

    Args:
        value: What JSON gave.
        part: Whose argument it is, for the error.
        nodes: The nodes that may be referred to.
        depth: How deep the value lies in another.

    Raises:
        DescriptionError: It is no such value, or too large or too deep.
    """
    if depth > _DEEPEST:
        raise DescriptionError(part, f"must nest its arguments at most {_DEEPEST} deep")
    match value:
        case None | bool():
            return value
        case int():
            return _bounded(value, part)
        case float():
            return value
        case str():
            return _text(value, part)
        case list():
            return _items(value, part, nodes, depth)
        case dict() if len(value) == 1:
            ((kind, content),) = value.items()
            if kind in _KINDS:
                return _KINDS[kind](content, part, nodes, depth)
    raise DescriptionError(part, "must use values of the format", value)


def _text(value: str, part: str) -> str:
    if value in WORDS or value in ATTRIBUTES or is_equation(value):
        return value
    raise DescriptionError(part, "must use words that pgnas knows", value)


def _bounded(value: int, part: str) -> int:
    if abs(value) > _LARGEST:
        raise DescriptionError(part, "must use numbers of 64 bits")
    return value


def _items(content: Any, part: str, nodes: Nodes, depth: int) -> list[Any]:
    if not isinstance(content, list) or len(content) > _LONGEST:
        raise DescriptionError(part, f"must use lists of at most {_LONGEST} values")
    return [decode(item, part, nodes, depth + 1) for item in content]


def _node(content: Any, part: str, nodes: Nodes, depth: int) -> fx.Node:
    if not isinstance(content, str) or content not in nodes:
        raise DescriptionError(part, "must read nodes that stand before it", content)
    return nodes[content]


def _tuple(content: Any, part: str, nodes: Nodes, depth: int) -> tuple[Any, ...]:
    return tuple(_items(content, part, nodes, depth))


def _slice(content: Any, part: str, nodes: Nodes, depth: int) -> slice:
    items = _items(content, part, nodes, depth)
    if len(items) != 3 or not all(item is None or isinstance(item, int | fx.Node) for item in items):
        raise DescriptionError(part, "must use slices of start, stop and step", content)
    return slice(*items)


def _range(content: Any, part: str, nodes: Nodes, depth: int) -> range:
    items = _items(content, part, nodes, depth)
    if len(items) != 3 or not all(type(item) is int for item in items) or items[2] == 0:
        raise DescriptionError(part, "must use ranges of start, stop and step", content)
    found = range(*items)
    if max(abs(item) for item in items) > _LONGEST:
        raise DescriptionError(part, f"must use ranges within {_LONGEST}", content)
    return found


def _float(content: Any, part: str, nodes: Nodes, depth: int) -> float:
    if content not in ("inf", "-inf", "nan"):
        raise DescriptionError(part, "must spell special floats inf, -inf or nan", content)
    return float(content)


def _one_of(known: Mapping[str, Any], what: str) -> Callable[[Any, str, Nodes, int], Any]:
    def find(content: Any, part: str, nodes: Nodes, depth: int) -> Any:
        if not isinstance(content, str) or content not in known:
            raise DescriptionError(part, f"must use a {what} that pgnas knows", content)
        return known[content]

    return find


def _ellipsis(content: Any, part: str, nodes: Nodes, depth: int) -> Any:
    return ...


_KINDS: Mapping[str, Callable[[Any, str, Nodes, int], Any]] = {
    "node": _node,
    "tuple": _tuple,
    "slice": _slice,
    "range": _range,
    "float": _float,
    "dtype": _one_of(DTYPES, "number type"),
    "memory_format": _one_of(MEMORY_FORMATS, "memory format"),
    "ellipsis": _ellipsis,
}
