from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgnas.config import RunConfig


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """A valid configuration whose run folder, not yet made, lies in ``tmp_path``."""

    def make(**changes: Any) -> RunConfig:
        settings: dict[str, Any] = {"model": "tiny", "data": "digits", "out": str(tmp_path / "run")}
        return RunConfig(**settings | changes)

    return make
