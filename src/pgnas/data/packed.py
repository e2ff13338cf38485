"""Many strings in two arrays: a million paths as Python objects would cost far more, in every worker process."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np


class PackedPaths:
    """An immutable sequence of paths.

    >>> PackedPaths(["cat/1.png", "dog/2.png"])[1]
    'dog/2.png'
    """

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(i)
        start = self._ends[i - 1] if i else 0
        return os.fsdecode(self._bytes[start : self._ends[i]].tobytes())
