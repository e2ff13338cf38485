"""``pgnas report``, ``status`` and ``compare``: looking at runs without touching them."""

from __future__ import annotations

import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pgnas.console import format_fields, print_either, print_lines
from pgnas.progress import clock_time

if TYPE_CHECKING:
    from pgnas.stages.status import Status

_MEASURED = ("epoch", "loss", "accuracy", "cost", "target", "lambda", "undecided", "best")


def report(
    path: Annotated[Path, Parameter(name="RUN")],
    /,
    *,
    open_: Annotated[bool, Parameter(name="--open", negative=())] = False,
    against: Annotated[tuple[Path, ...], Parameter(negative=())] = (),
    out: Path | None = None,
) -> None:
    """Draw report.html, of a finished run or of one that is still going.

    Args:
        path: The run folder; it is not locked, nor is anything but the report written.
        open_: Show it in a browser.
        against: Other run folders whose candidates are shown beside this run's; such as a run with random ones.
        out: The file to write; not given: report.html in the run folder.
    """
    from pgnas.stages.redrawing import redraw

    written = redraw(path, against=against, out=out)
    print_lines([str(written)])
    if open_:
        _show(written)


def compare(
    *paths: Annotated[Path, Parameter(name="RUN")],
    out: Path = Path("compare.html"),
    open_: Annotated[bool, Parameter(name="--open", negative=())] = False,
) -> None:
    """Compare runs: one table, and one page with figures; none of the runs is disturbed.

    Args:
        paths: Two run folders or more, finished or not.
        out: The page to write.
        open_: Show it in a browser.
    """
    from pgnas.cli import tables
    from pgnas.stages.comparing import compare as read

    found = read(paths, out=out)
    sections = found.sections()
    print_either(tables.plain(sections), lambda width: tables.fancy(sections, width))
    print_lines([f"page: {found.page}"])
    if open_:
        _show(found.page)


def _show(page: Path) -> None:
    webbrowser.open(page.resolve().as_uri())


def status(path: Annotated[Path, Parameter(name="RUN")], /) -> None:
    """Tell how far a run has come, from another terminal; the run is not disturbed.

    Args:
        path: The run folder.
    """
    from pgnas.stages.status import status as read

    print_lines(_told(read(path)))


def _told(status: Status) -> Iterator[str]:
    """What the run is doing, a line each."""
    yield f"{status.path}: {status.state}"
    if status.done:
        yield f"done: {', '.join(status.done)}"
    if status.stage is not None:
        parts = [f"{'now' if status.state == 'running' else 'stopped in'}: {status.stage}"]
        if status.position is not None:
            behind, total = status.position
            parts.append(f"step {behind:,} of {total:,} ({behind / max(1, total):.0%})")
        if status.seconds_left is not None and status.state == "running":
            parts.append(f"{clock_time(status.seconds_left)} left in this stage")
        if status.seconds_old is not None:
            parts.append(f"told {clock_time(status.seconds_old)} ago")
        yield ", ".join(parts)
    measured = {name: status.measured[name] for name in _MEASURED if name in status.measured}
    if measured:
        yield f"last measured: {format_fields(measured)}"
    if status.resume is not None and status.state != "running":
        yield f"to go on: {status.resume}"
