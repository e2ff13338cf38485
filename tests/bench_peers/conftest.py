from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))  # benches are no part of the package


@pytest.fixture(autouse=True)
def leaves_the_registry() -> Iterator[None]:
    """The bench registers a network; other tests list those of the package."""
    from pgnas.supernets import MODELS

    before = dict(MODELS)
    yield
    MODELS.clear()
    MODELS.update(before)


@pytest.fixture
def make_result() -> Callable[..., dict[str, Any]]:
    """A result as a cell writes it."""

    def make(method: str, seed: int, before: float | None, after: float, **changes: Any) -> dict[str, Any]:
        cell = {"method": method, "network": "resnet", "cap": "40%", "seed": seed} | changes
        scores = {} if before is None else {name: {"test": before} for name in ("before", "before_recalibrated")}
        return {
            "cell": cell,
            **scores,
            "after": {"test": after},
            "full": {"params": 100, "macs": 1000},
            "found": {"params": 50, "macs": 400},
            "cap_met": True,
            "compute": {"finding": 5.0, "total": 20.0},
            "seconds": {"total": 60.0},
        }

    return make
