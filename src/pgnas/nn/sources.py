"""What the source of a model's classes says, where tracing cannot see it."""

from __future__ import annotations

import inspect
from typing import Any


def source_of(item: Any) -> str:
    """The source of a class or function; empty where there is none."""
    try:
        return inspect.getsource(item)
    except (OSError, TypeError):
        return ""
