"""The benchmark's tables, if they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest


def table(name: str) -> dict[str, np.ndarray]:
    """The columns of ``name`` in the folder PGNAS_DATA; skips the test where there is none."""
    home = os.environ.get("PGNAS_DATA")
    if not home or not (Path(home) / name).is_file():
        pytest.skip(f"set PGNAS_DATA to a folder with {name}")
    with np.load(Path(home) / name, allow_pickle=False) as columns:
        return {key: columns[key] for key in columns.files}
