"""Folders that are filled when they are first needed, maybe by several processes at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock


@contextmanager
def filled_by_one(folder: str | os.PathLike[str]) -> Iterator[None]:
    """While one process downloads or unpacks into ``folder``, the others wait, and find there what it brought.

    A folder that cannot be written has been filled before; nobody waits there.
    """
    if not os.access(folder, os.W_OK):
        yield
        return
    with FileLock(os.path.join(folder, ".pgnas.lock")):
        yield
