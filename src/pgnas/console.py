"""The only place of pgnas that prints: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from pgnas import launch, progress
from pgnas.progress import Clock, SilentReporter, clock_time

__all__ = [
    "PlainReporter",
    "RichReporter",
    "SilentReporter",
    "make_reporter",
    "print_either",
    "print_error",
    "print_interrupted",
    "print_lines",
]

GRACE = 5.0
"""Seconds in which the first of several processes must have told what went wrong, and have ended."""
WIDE = 120
"""Characters a line, from which on a bar has room."""
PLAIN_INTERVAL = 5.0  # seconds between two plain lines


def _percent(value: float) -> str:
    return f"{value:.1%}"


_FIELDS: dict[str, tuple[str, Callable[[float], str]]] = {  # name: (label, format); order is the order on screen
    "epoch": ("epoch", "{:.0f}".format),
    "loss": ("loss", "{:.4f}".format),
    "accuracy": ("val. accuracy", _percent),
    "cost": ("exp. cost", _percent),
    "target": ("its target", _percent),
    "lambda": ("λ", "{:.4g}".format),
    "undecided": ("undecided", _percent),
    "best": ("best", _percent),
}


def format_fields(fields: dict[str, float]) -> str:
    """Measurements as one phrase: ``"loss 1.2034, val. accuracy 61.0%"``."""
    known = [f"{label} {form(fields[name])}" for name, (label, form) in _FIELDS.items() if name in fields]
    other = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in fields.items() if name not in _FIELDS]
    return ", ".join(known + other)


class RichReporter:
    """A live progress bar, for a terminal.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=24 if console.width >= WIDE else 8),
            TextColumn("{task.fields[place]}"),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[measured]}", table_column=Column()),  # the only one that may wrap
            console=console,
        )
        self._task: TaskID | None = None
        self._clock = Clock()

    def stage(self, title: str) -> None:
        """Begin a new bar."""
        self._bars.start()
        self._task = self._bars.add_task(title, total=None, place="", measured="", left="")
        self._clock = Clock()

    def advance(self, done: int, total: int, **fields: float) -> None:
        """Move the bar."""
        if self._task is None:
            self.stage("")
        if self._task is not None:
            left = clock_time(self._clock.seconds_left(done, total))
            self._bars.update(
                self._task,
                completed=done,
                total=total,
                place=f"{done}/{total}",
                measured=format_fields(fields),
                left=f"{left} left" if left else "",
            )

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._bars.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the bars as they are."""
        self._bars.stop()


class PlainReporter:
    """Plain lines for a log file: one at each stage's beginning and end, and one every few seconds between.

    Args:
        stream: Where to write.
        interval: Least seconds between two progress lines.
        now: A monotonic clock in seconds.
    """

    def __init__(
        self, stream: TextIO, *, interval: float = PLAIN_INTERVAL, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._interval = interval
        self._now = now
        self._title = ""
        self._clock = Clock(now)
        self._next = now()

    def stage(self, title: str) -> None:
        """Name the stage."""
        self._title = title
        self._clock = Clock(self._now)
        self._next = self._now()
        self.note(title)

    def advance(self, done: int, total: int, **fields: float) -> None:
        """Write a line, unless the last is too recent."""
        left = clock_time(self._clock.seconds_left(done, total))
        if done < total and self._now() < self._next:
            return
        self._next = self._now() + self._interval
        parts = [f"{self._title} {done}/{total}".strip(), format_fields(fields), f"{left} left" if left else ""]
        self.note(", ".join(part for part in parts if part))

    def note(self, text: str) -> None:
        """Write ``text`` as a line."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is pending: each line is written at once."""


class NoteHandler(logging.Handler):
    """Shows the warnings that pgnas logs as notes, so that they do not tear a live bar.

    Args:
        reporter: Where to show them.
    """

    def __init__(self, reporter: progress.Progress) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        self._reporter.note(f"pgnas: {record.levelname.lower()}: {record.getMessage()}")


def make_reporter(stream: TextIO | None = None) -> progress.Progress:
    """A live bar if ``stream`` (standard error) is a terminal, plain lines otherwise; the first process speaks."""
    if not launch.is_first():
        return SilentReporter()
    stream = sys.stderr if stream is None else stream
    console = Console(file=stream)
    return RichReporter(console) if console.is_terminal and not console.is_dumb_terminal else PlainReporter(stream)


def print_lines(lines: Iterable[str]) -> None:
    """Print results on standard output; of several processes the first does."""
    for line in lines if launch.is_first() else ():
        print(line)
    sys.stdout.flush()


def print_either(plain: Iterable[str], fancy: Callable[[int], RenderableType]) -> None:
    """Print a result on standard output: ``fancy(width)`` on a terminal, the ``plain`` lines elsewhere."""
    console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
        console.print(fancy(console.width))
    else:
        print_lines(plain)


def print_error(message: str) -> None:
    """Print one line on standard error: ``pgnas: error: <message>``.

    A process that is not the first waits: most errors are those of all, and are told once. Who launched the processes
    ends them when the first has ended; whoever still lives then has something to say that the first did not know.
    """
    if not launch.is_first():
        time.sleep(GRACE)
    line = " ".join(message.split())
    # A value that is quoted may hold what would clear the terminal, or turn the rest of the line round.
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
    print(f"pgnas: error: {shown}", file=sys.stderr, flush=True)


def print_interrupted(command: str) -> None:
    """Print one line on standard error that says how to go on; of several processes the first does."""
    if not launch.is_first():
        return
    _, processes = launch.launched()
    how = "to resume" if processes == 1 else "to resume, launch the same again, or in one process"
    print(f"\npgnas: interrupted; {how}: {command}", file=sys.stderr, flush=True)
