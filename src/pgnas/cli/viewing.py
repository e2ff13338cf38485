"""``pgnas report``, ``status`` and ``compare``: looking at runs without touching them."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pgnas.console import print_lines

_Switch = Annotated[bool, Parameter(negative=())]


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
        webbrowser.open(written.resolve().as_uri())
