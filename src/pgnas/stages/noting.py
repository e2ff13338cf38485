"""How far a stage has come, noted in the run folder for whoever asks from outside."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from pgnas.errors import StorageError
from pgnas.progress import Clock, Progress
from pgnas.run_folder import RunFolder, storage

PROGRESS_NAME = "progress.json"
INTERVAL = 2.0
"""Seconds between two notes."""


class FolderProgress:
    """Passes on what a stage tells, and notes it in ``progress.json``.

    Args:
        progress: Where to report.
        folder: The run folder.
        now: A monotonic clock in seconds.
    """

    def __init__(self, progress: Progress, folder: RunFolder, *, now: Callable[[], float] = time.monotonic) -> None:
        self._progress, self._folder, self._now = progress, folder, now
        self._title, self._clock, self._noted = "", Clock(now), now()

    def stage(self, title: str) -> None:
        """A new stage begins."""
        self._progress.stage(title)
        self._title, self._clock = title, Clock(self._now)
        self._note(0, None, {})

    def advance(self, done: int, total: int, **fields: float) -> None:
        """``done`` of ``total`` steps are behind; noted if the last note is old enough, or there will be no other."""
        self._progress.advance(done, total, **fields)
        left = self._clock.seconds_left(done, total)
        if done >= total or self._now() - self._noted >= INTERVAL:
            self._note(done, total, fields, left)

    def note(self, text: str) -> None:
        """Pass it on."""
        self._progress.note(text)

    def close(self) -> None:
        """Pass it on."""
        self._progress.close()

    def _note(self, done: int, total: int | None, fields: dict[str, float], seconds_left: float | None = None) -> None:
        self._noted = self._now()
        if not self._folder.writes:
            return
        value = {
            "stage": self._title,
            "done": done,
            "total": total,
            "fields": fields,
            "seconds_left": seconds_left,
            "process": os.getpid(),
            "at": time.time(),
        }
        # A full disk will be told by the stage's own writes, which matter.
        with contextlib.suppress(StorageError):
            self._folder.write_apart(PROGRESS_NAME, (storage.to_json(value) + "\n").encode())
