"""What ``pgnas list`` shows."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

_REGISTRIES = {
    "models": ("pgnas.supernets", "MODELS"),
    "data": ("pgnas.data", "SOURCES"),
    "priors": ("pgnas.bayes", "PRIORS"),
}


def describe(what: str) -> list[str]:
    """One line for each entry of the registry ``what``: its name and what it is."""
    module, attribute = _REGISTRIES[what]
    registry: Mapping[str, Any] = getattr(importlib.import_module(module), attribute)
    width = max((len(name) for name in registry), default=0)
    return [f"{name:<{width}}  {entry.description}".rstrip() for name, entry in registry.items()]
