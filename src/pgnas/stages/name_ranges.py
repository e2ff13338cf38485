"""Many similar names as few: ``layer1.0.conv1, layer1.1.conv1`` is ``layer1.{0-1}.conv1``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pgnas.architecture import format_ranges

_Fields = tuple[str, ...]  # the numbers of a name, in order; "{0-3}" for several


def merge_names(names: Iterable[str]) -> list[str]:
    """The same names, those that differ in their numbers alone written as ranges; in order of first appearance."""
    merged: dict[str, list[_Fields]] = {}
    for name in dict.fromkeys(names):
        merged.setdefault(re.sub(r"\d+", "\0", name), []).append(tuple(re.findall(r"\d+", name)))
    return [_fill(template, fields) for template, found in merged.items() for fields in _merge(found)]


def _merge(found: list[_Fields]) -> list[_Fields]:
    """Merge in one place after another: whatever agrees in all other places becomes one."""
    for place in range(len(found[0])):
        alike: dict[tuple[_Fields, _Fields], list[str]] = {}
        for fields in found:
            alike.setdefault((fields[:place], fields[place + 1 :]), []).append(fields[place])
        found = [(*before, _range(numbers), *after) for (before, after), numbers in alike.items()]
    return found


def _range(numbers: list[str]) -> str:
    if len(numbers) == 1:
        return numbers[0]
    if any(str(int(number)) != number for number in numbers):  # 01, 02: not the same as 1, 2
        return "{" + ",".join(numbers) + "}"
    return "{" + format_ranges(sorted(map(int, numbers))) + "}"


def _fill(template: str, fields: _Fields) -> str:
    parts = template.split("\0")
    return parts[0] + "".join(number + rest for number, rest in zip(fields, parts[1:], strict=True))
