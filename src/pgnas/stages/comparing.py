"""``pgnas compare RUN RUN...``: several runs in one table and on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgnas.errors import ConfigError
from pgnas.report.comparison import HEADS, ComparedRun, comparison_rows, differing_settings, render_comparison
from pgnas.run_folder import RunFolder, storage
from pgnas.stages.inspection_tables import Column, Section
from pgnas.stages.redrawing import result_values, run_names


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other.

    Attributes:
        runs: What is compared of each.
        page: Where the page was written.
    """

    runs: tuple[ComparedRun, ...]
    page: Path

    def sections(self) -> list[Section]:
        """For a terminal: the results, and the settings in which the runs differ."""
        columns = tuple(Column(head, numeric=place > 0) for place, head in enumerate(HEADS))
        named = tuple(Column(name) for name in ("setting", *(run.name for run in self.runs)))
        differing = tuple((name, *values) for name, values in differing_settings(self.runs).items())
        made = [Section("Found networks", columns, tuple(comparison_rows(self.runs)))]
        return [*made, Section("Settings that differ", named, differing)] if differing else made


def compare(paths: Sequence[str | Path], *, out: str | Path) -> Comparison:
    """Read the runs, finished or not, and write the page.

    Args:
        paths: Two run folders or more.
        out: The page, an HTML file.

    Raises:
        ConfigError: Fewer than two runs are given.
        RunFolderError: A folder holds no run.
        FileError: A file of a run is damaged, or ``out`` is a folder.
        StorageError: The page cannot be written.
    """
    if len(paths) < 2:
        raise ConfigError("pgnas compare", "takes two run folders or more", value=len(paths), remedy="name another")
    target = Path(out)
    storage.require_target(target)
    runs = tuple(_read(path, name) for path, name in zip(paths, run_names(paths), strict=True))
    storage.write_bytes(target, render_comparison(runs).encode())
    return Comparison(runs, target)


def _read(path: str | Path, name: str) -> ComparedRun:
    with RunFolder.open(path, writer=False) as folder:
        return ComparedRun(name, result_values(folder), folder.config.given(), folder.read_lines("candidates.jsonl"))
