"""One writer a folder: a lock that the operating system releases however the process ends."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import time
import weakref
from pathlib import Path

from pgnas.errors import RunFolderError
from pgnas.run_folder.storage import explained

if sys.platform != "win32":  # there, a folder is not locked
    import fcntl

LOCK_NAME = ".pgnas.lock"
PROBE = 0.05
"""Seconds, longer than :func:`is_locked` takes."""

_logger = logging.getLogger(__name__)
_held: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """The right to write a folder, held until :meth:`release` or the end of the process.

    Args:
        folder: The folder, which exists.

    Raises:
        RunFolderError: Another process, or another part of this one, holds it.
        StorageError: The lock file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        with explained(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        self._close = weakref.finalize(self, os.close, descriptor)
        try:
            _take(descriptor, folder)
        except BaseException:
            self.release()
            raise
        _held.add(self)

    def release(self) -> None:
        """Let others write; may be called twice."""
        self._close()
        _held.discard(self)


def is_locked(folder: Path) -> bool:
    """Whether a process holds the right to write a folder; where folders cannot be locked, no."""
    if sys.platform == "win32":
        return False
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(descriptor)
    return False


def _take(descriptor: int, folder: Path) -> None:
    if sys.platform == "win32":
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(PROBE)  # it may only be somebody asking whether it is locked
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            _logger.warning("%s cannot be locked (%s): start no second run in this folder", folder, error.strerror)
            return
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        raise RunFolderError(
            str(folder),
            "must have one writer at a time",
            value=f"a run that is still going (process {holder})" if holder else "a run that is still going",
            remedy="wait for it, stop it, or choose another --out",
        ) from error
    with contextlib.suppress(OSError):  # a full disk: the number is only for the message
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _forget_in_child() -> None:
    """A forked data-loading worker shares the lock and would keep it after its parent's death."""
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
