"""Docstrings refer to names as Sphinx does; on the pages they are code."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Roles(griffe.Extension):
    """Replace ``:func:`~package.name``` by the name."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for every object that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r":\w+:`([^`]+)`", _short, obj.docstring.value)


def _short(match: re.Match[str]) -> str:
    name = match[1]
    return f"`{name.rpartition('.')[2] if name.startswith('~') else name}`"
