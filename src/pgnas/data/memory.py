"""How much memory there is, and whether a data set fits into it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from pgnas.errors import DataError
from pgnas.launch import processes_here

_SHARE = 0.45  # splitting copies the images once; a network wants some memory too
_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that this process may still use, the limit of a container included; ``None``: unknown."""
    amounts = [amount for amount in (_machine(), _container()) if amount is not None]
    return min(amounts, default=None)


def fits_in_memory(shape: Sequence[int], *, share: float = _SHARE) -> bool:
    """Whether examples of ``shape``, (N, C, [D,] H, W), fit as uint8 in a ``share`` of the available memory.

    Of several training processes on a machine each may have an equal part of that share.
    """
    available = available_memory()
    return available is None or math.prod(shape) <= share * available / processes_here()


def require_memory(subject: str, shape: Sequence[int], *, remedy: str = "") -> None:
    """Check that examples of ``shape``, (N, C, [D,] H, W), fit as uint8 in about half of the available memory.

    Of several training processes on a machine each has an equal part of it.

    Raises:
        DataError: They do not.
    """
    if fits_in_memory(shape):
        return
    count, *each = shape
    raise DataError(
        subject,
        f"must fit in about half of the available memory ({_size((available_memory() or 0) // processes_here())})",
        value=f"{count:,} images of {'x'.join(map(str, each))}, {_size(math.prod(shape))}",
        remedy=remedy or "use a smaller --image-size or fewer images",
    )


def _size(amount: int) -> str:
    return f"{amount / 2**30:.1f} GiB" if amount >= 2**30 else f"{amount / 2**20:.1f} MiB"


def _machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:  # not Linux: all memory, as nothing portable tells what is free
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _container() -> int | None:
    try:
        limit = int((_CGROUP / "memory.max").read_text())  # "max" if there is none
        return max(0, limit - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        return None
