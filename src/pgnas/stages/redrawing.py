"""``pgnas report RUN``: the report drawn again at any time, of a run that is finished, interrupted or still going."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pgnas.run_folder import RunFolder, storage
from pgnas.stages import pipeline, reporting


def redraw(path: str | Path, *, against: Sequence[str | Path] = (), out: str | Path | None = None) -> Path:
    """Draw the report of a run from what its stages have written so far.

    The folder is not locked: a run may go on in it meanwhile.

    Args:
        path: The run folder.
        against: Other run folders, whose candidates are shown beside this run's, such as random ones.
        out: Where to write; None: ``report.html`` in the run folder.

    Returns:
        The file.

    Raises:
        RunFolderError: There is no run.
        FileError: A file of the run is damaged.
        StorageError: The file cannot be written.
    """
    if out is not None:
        storage.require_target(Path(out))
    with ExitStack() as stack:
        folder, *others = (stack.enter_context(RunFolder.open(place, writer=False)) for place in (path, *against))
        named = dict(zip(run_names(against), others, strict=True))
        html = reporting.render(folder, result_values(folder), others=named)
    target = Path(out) if out is not None else folder.file(reporting.REPORT_NAME)
    storage.write_bytes(target, html.encode())
    return target


def result_values(folder: RunFolder) -> Mapping[str, Any]:
    """The fields of ``result.json``, or those that the stages done so far give.

    Raises:
        FileError: The file is damaged.
    """
    return pipeline.load_result(folder).values


def run_names(paths: Sequence[str | Path]) -> list[str]:
    """What to call the runs in these folders: the folders' own names, or the whole paths where two have one name."""
    names = [Path(path).resolve().name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
