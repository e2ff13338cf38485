"""Caps, shares and lists of values as users write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pgnas.errors import ConfigError

_AMOUNT = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(%|[kKmMgG]?)\s*$")
_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_LATENCY = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(%|us|ms|s)\s*$")
_BUDGET = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(min|h|)\s*$")
_MINUTES = {"min": 1.0, "h": 60.0}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_T = TypeVar("_T")


def require_different(flag: str, values: Sequence[_T], *, name: Callable[[_T], str] = str) -> None:
    """There must be values, and no two the same.

    Args:
        flag: The flag that lists them.
        values: What it lists.
        name: What a value is called, in the name of its folder for example: values of one name are the same.

    Raises:
        ConfigError: It is not so.
    """
    if not values or len({name(value) for value in values}) != len(values):
        raise ConfigError(flag, "must be one or more different values", value=list(values), remedy="list them")


@dataclass(frozen=True)
class Amount:
    """A cap as the user writes it: a share of the full network (``"40%"``), a count (``"2M"``) or a time (``"8ms"``).

    Attributes:
        value: The share in (0, 1], or the count or the seconds (> 0).
        relative: Whether ``value`` is a share of the full network's.
    """

    value: float
    relative: bool

    @classmethod
    def parse(cls, text: str, *, subject: str) -> Amount:
        """Read ``"40%"``, ``"2M"``, ``"350k"`` or ``"1200"``.

        Raises:
            ConfigError: ``text`` is none of these, or lies outside (0 %, 100 %] or [1, inf).
        """
        return cls._read(text, _AMOUNT, _SCALE, subject=subject, example="a count like 2M from 1", least=1.0)

    @classmethod
    def parse_latency(cls, text: str, *, subject: str) -> Amount:
        """Read ``"60%"``, ``"8ms"``, ``"350us"`` or ``"1.5s"``.

        Raises:
            ConfigError: ``text`` is none of these, or lies outside (0 %, 100 %] or (0, inf).
        """
        return cls._read(text, _LATENCY, _SECONDS, subject=subject, example="a time like 8ms above 0", least=0.0)

    @classmethod
    def _read(
        cls, text: str, pattern: re.Pattern[str], scale: dict[str, float], *, subject: str, example: str, least: float
    ) -> Amount:
        match = pattern.match(text)
        rule = f"must be a share like 40% in (0 %, 100 %] or {example}"
        remedy = f"write for example {subject} 40%"
        if match is None:
            raise ConfigError(subject, rule, value=repr(text), remedy=remedy)
        number, unit = float(match.group(1)), match.group(2)
        relative = unit == "%"
        value = number / 100 if relative else number * scale[unit.lower()]
        if value <= 0 or (value > 1 if relative else value < least):
            raise ConfigError(subject, rule, value=repr(text), remedy=remedy)
        return cls(value, relative)

    def of(self, full: float) -> float:
        """The cap as a count or in seconds, for a network whose own count or time is ``full``."""
        return self.value * full if self.relative else self.value


@dataclass(frozen=True)
class Budget:
    """Compute that a run may spend, as the user writes it: epochs of the full network (``"12"``) or ``"30min"``.

    Attributes:
        value: Epochs or minutes, > 0.
        is_time: Whether ``value`` is in minutes.
    """

    value: float
    is_time: bool

    @classmethod
    def parse(cls, text: str, *, subject: str) -> Budget:
        """Read ``"12"``, ``"7.5"``, ``"30min"`` or ``"2h"``.

        Raises:
            ConfigError: ``text`` is none of these, fewer epochs than 1, or no time.
        """
        match = _BUDGET.match(text)
        number, unit = (float(match.group(1)), match.group(2)) if match else (0.0, "")
        if number <= 0 or (not unit and number < 1):
            rule = "must be epochs of the full network, 1 or more, or a time like 30min or 2h"
            raise ConfigError(subject, rule, value=repr(text), remedy=f"write for example {subject} 12")
        return cls(number * _MINUTES.get(unit, 1.0), bool(unit))


def parse_share(text: str, *, subject: str, otherwise: str) -> float:
    """Read a share strictly between 0 % and 100 %, such as ``"25%"``.

    Args:
        text: What the user wrote.
        subject: The setting, for the error.
        otherwise: What else the setting may be, for the error.

    Raises:
        ConfigError: It is no such share.
    """
    match = _AMOUNT.match(text)
    if match is None or match.group(2) != "%" or not 0 < float(match.group(1)) < 100:
        rule = f"must be a share strictly between 0% and 100%, or {otherwise}"
        raise ConfigError(subject, rule, value=repr(text), remedy=f"write for example {subject} 25%")
    return float(match.group(1)) / 100
