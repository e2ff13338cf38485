"""Which values a setting's type hint allows: strictly, as in a file, and as Python code may write them."""

from __future__ import annotations

import numbers
import os
import types
import typing
from collections.abc import Sequence

import numpy as np

_PLAIN_TYPES: dict[object, str] = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def strict(value: object, hint: object) -> object | None:
    """``value`` as one of the kinds that ``hint`` allows, a list as a tuple; ``None`` if it is of none."""
    found = (_as_kind(value, kind) for kind in _alternatives(hint))
    return next((item for item in found if item is not None), None)


def lenient(value: object, hint: object) -> object | None:
    """As :func:`strict`, of what Python code may write for it.

    NumPy's numbers and arrays are numbers and lists, paths are strings, so are numbers where the command line reads
    text (``budget=12``), and a string is a list of the parts between its commas where those are strings.
    """
    for kind in _alternatives(hint):
        found = _as_kind(_plain(value, kind), kind)
        if found is not None:
            return found
    return None


def described(hint: object) -> str:
    """What ``hint`` allows, in words: ``"a whole number or a string"``."""
    return " or ".join(dict.fromkeys(_describe(kind) for kind in _alternatives(hint)))


def _plain(value: object, kind: object) -> object:
    """``value`` as Python's own type for ``kind``, where it means one."""
    if typing.get_origin(kind) is tuple:
        member = typing.get_args(kind)[0]
        if isinstance(value, str):
            parts = [part.strip() for part in value.split(",") if part.strip()]
            return value if member is float else parts
        return [_plain(item, member) for item in value] if isinstance(value, Sequence | np.ndarray) else value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    return str(number) if kind is str else number


def _alternatives(hint: object) -> tuple[object, ...]:
    """The members of a union, save ``None``."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return tuple(member for member in typing.get_args(hint) if member is not type(None))
    return (hint,)


def _as_kind(value: object, kind: object) -> object | None:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return value if isinstance(value, str) and value in typing.get_args(kind) else None
    if origin is tuple:
        member = typing.get_args(kind)[0]
        items = [_as_kind(item, member) for item in value] if isinstance(value, list) else [None]
        return None if any(item is None for item in items) else tuple(items)
    if kind is float and type(value) is int:  # 1 for 1.0; True is an int only to isinstance
        return float(value)
    return value if type(value) is kind else None


def _describe(kind: object) -> str:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    if origin is tuple:
        return f"a list, each {_describe(typing.get_args(kind)[0])}"
    return _PLAIN_TYPES[kind]
