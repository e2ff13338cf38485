"""What a stage tells while it works, and to whom: the stages see only this protocol.

Shares are given in [0, 1]. The fields that reporters know how to name (any other is shown under its own name):

* ``loss``: the training loss, averaged over the epoch.
* ``accuracy``: the accuracy on the validation images.
* ``cost``: the expected cost of the posterior as a share of the full network's.
* ``undecided``: the share of gates whose keep probability is neither near 0 nor near 1.
* ``best``: the validation accuracy of the best candidate so far.
"""

from __future__ import annotations

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
