"""Which of the processes of a run this is, as torchrun, accelerate launch or mpirun told it (without torch)."""

from __future__ import annotations

import os

_NAMES = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)


def launched() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) for a process that was started by itself."""
    for rank, size in _NAMES:
        given = os.environ.get(rank, ""), os.environ.get(size, "")
        if all(text.isdecimal() for text in given):
            return int(given[0]), int(given[1])
    return 0, 1


def processes_here() -> int:
    """Training processes on this machine, as torchrun and accelerate say."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return int(text) if text.isdecimal() and int(text) else 1


def is_first() -> bool:
    """Whether this is the process that speaks: the one of rank 0."""
    return launched()[0] == 0
