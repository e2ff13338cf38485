"""Values of a report as text: JSON in, escaped HTML out; what is missing becomes a dash."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from typing import Any

DASH = "–"
NBSP = "\u00a0"

Row = Mapping[str, Any]

_NAMES = {"macs": "multiply-adds", "params": "parameters"}
_CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "\ufffd")  # HTML has no place for them


def cost_name(kind: str) -> str:
    """What a report calls ``macs`` and ``params``."""
    return _NAMES.get(kind, kind)


def text(value: object) -> str:
    """Any value as escaped text that UTF-8 can hold."""
    if value is None:
        return DASH
    plain = str(value).translate(_CONTROL).encode("utf-8", "replace").decode()
    return html.escape(plain)


def number(value: object) -> float | None:
    """A finite number, or ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond any float
        return None


def section(values: object, name: str) -> Row:
    """The mapping ``values[name]``; an empty one if it is missing or something else."""
    found = values.get(name) if isinstance(values, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def rows(values: object) -> list[Row]:
    """The mappings among ``values``."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping):
        return []
    return [row for row in values if isinstance(row, Mapping)]


def scored_whole(candidates: object) -> list[Row]:
    """The rows of a ``candidates.jsonl`` that were scored on as many images as any: others left a race early."""
    found = rows(candidates)
    most = max((number(row.get("count")) or 0 for row in found), default=0)
    return [row for row in found if (number(row.get("count")) or 0) == most]


def pairs(values: object) -> list[tuple[object, object]]:
    """The pairs among ``values``."""
    if not isinstance(values, list | tuple):
        return []
    return [(pair[0], pair[1]) for pair in values if isinstance(pair, list | tuple) and len(pair) == 2]


def percent(share: object) -> str:
    """0.979 as ``97.9 %``."""
    value = number(share)
    return DASH if value is None else f"{100 * value:.1f}{NBSP}%"


def share_of(part: object, whole: object) -> float | None:
    """``part / whole``, if there is such a thing."""
    top, bottom = number(part), number(whole)
    return None if top is None or not bottom else top / bottom


def count(value: object) -> str:
    """1234567 as ``1,234,567``."""
    found = number(value)
    return DASH if found is None else f"{found:,.0f}"


def short_count(value: object) -> str:
    """1234567 as ``1.23 M``."""
    found = number(value)
    if found is None:
        return DASH
    unit, size = unit_of(found)
    digits = f"{found / size:.3g}" if abs(found) < 1000 * size else f"{found / size:,.0f}"
    return f"{digits}{NBSP}{unit}" if unit else f"{found:,.0f}"


def unit_of(value: float) -> tuple[str, float]:
    """The unit in which ``value``, to three digits, is a short number, and its size."""
    units = (("G", 1e9), ("M", 1e6), ("k", 1e3))
    return next(((unit, size) for unit, size in units if abs(value) >= 0.9995 * size), ("", 1.0))


def duration(seconds: object) -> str:
    """75.2 as ``1 min 15 s``."""
    found = number(seconds)
    if found is None:
        return DASH
    if found < 60:
        return f"{found:.1f}{NBSP}s"
    minutes, rest = divmod(round(found), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NBSP}h {minutes}{NBSP}min" if hours else f"{minutes}{NBSP}min {rest}{NBSP}s"
