"""What a stage tells while it works, and to whom: the stages see only this protocol.

Shares are given in [0, 1]. The fields that reporters know how to name (any other is shown under its own name):

* ``epoch``: the epoch of the run, from 1.
* ``loss``: the training loss, averaged over the epoch.
* ``accuracy``: the accuracy on the validation images.
* ``cost``: the expected cost of the posterior as a share of the full network's.
* ``undecided``: the share of gates whose keep probability is neither near 0 nor near 1.
* ``best``: the validation accuracy of the best candidate so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Where a stage reports to."""

    def stage(self, title: str) -> None:
        """A new stage (``"search"``) begins."""

    def advance(self, done: int, total: int, **fields: float) -> None:
        """``done`` of ``total`` steps of the current stage are behind; ``fields`` are the latest measurements."""

    def note(self, text: str) -> None:
        """One line worth reading after the run."""

    def close(self) -> None:
        """Nothing more will come; a reporter may be closed twice."""


class Clock:
    """Time left, from the pace of this session alone: a resumed stage does not begin at zero.

    Args:
        now: A monotonic clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._start: tuple[float, int] = (now(), 0)
        self._seen = False

    def seconds_left(self, done: int, total: int) -> float | None:
        """The seconds left; None while there is no pace yet, and at the end."""
        if not self._seen:
            self._seen = True
            if done > 1:  # resumed: what came before was not done in this session
                self._start = (self._now(), done)
        began, first = self._start
        if done <= first or done >= total:
            return None
        return (self._now() - began) / (done - first) * (total - done)


def clock_time(seconds: float | None) -> str:
    """Seconds as ``"3:20"``; empty for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class SilentReporter:
    """Says nothing: the default of the library."""

    def stage(self, title: str) -> None:
        """Say nothing."""

    def advance(self, done: int, total: int, **fields: float) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Say nothing."""


class HeldReporter(SilentReporter):
    """Keeps the notes of a preparation, which are worth reading only if it succeeds."""

    def __init__(self) -> None:
        self._notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep the line."""
        self._notes.append(text)

    def release(self, progress: Progress) -> None:
        """Hand the lines on."""
        for text in self._notes:
            progress.note(text)
