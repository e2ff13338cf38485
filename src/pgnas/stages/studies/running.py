"""Doing a study: its cells one after another, each an ordinary run folder, and its table after every seed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from pgnas.amounts import require_different
from pgnas.config import RunConfig
from pgnas.config_file import make_config
from pgnas.errors import ConfigError, InputError, RunFolderError, told_under
from pgnas.processes import Processes, join
from pgnas.progress import Progress, SilentReporter
from pgnas.run_folder import RunFolder
from pgnas.run_folder.admission import CONFIG_NAME, read_config, require_same
from pgnas.run_folder.storage import write_bytes
from pgnas.stages.context import Context
from pgnas.stages.finetuning import finetune, is_finetuned, require_same_tuning
from pgnas.stages.pipeline import run
from pgnas.stages.studies.drawing import save_png
from pgnas.stages.studies.measurements import Measurement
from pgnas.stages.studies.plan import Cell, Settings, Study, Variant
from pgnas.stages.studies.tables import cells_csv, markdown, summary_csv

TABLE, TABLE_CSV, CELLS_CSV, FIGURE = "table.md", "table.csv", "cells.csv", "figure.png"


@dataclass(frozen=True)
class StudyResult:
    """A study's table.

    Attributes:
        study: The study.
        path: Its folder.
        measurements: Row by row and seed by seed.
    """

    study: Study
    path: Path
    measurements: tuple[Measurement, ...]

    def summary(self) -> list[str]:
        """The table in Markdown, and what follows from it."""
        lines = markdown(self.study.head, self.measurements)
        verdicts = list(self.study.verdicts(self.measurements))
        return [*lines, "", *verdicts] if verdicts else lines

    def write(self) -> None:
        """Write the table as Markdown and CSV, and the figure."""
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        self.study.draw(figure, self.measurements)
        files = {
            TABLE: "\n".join([*self.summary(), ""]).encode(),
            TABLE_CSV: summary_csv(self.study.head, self.measurements).encode(),
            CELLS_CSV: cells_csv(self.study.head, self.measurements).encode(),
            FIGURE: save_png(figure),
        }
        for name, data in files.items():
            write_bytes(self.path / name, data)


def run_study(
    study: Study,
    *layers: Mapping[str, object],
    seeds: Sequence[int] = (0, 1, 2),
    progress: Progress | None = None,
) -> StudyResult:
    """Do all cells of a study and write its table; cells begun are resumed, those done skipped.

    Args:
        study: The study.
        layers: The settings of its runs, a later one winning; ``out`` is the study's folder. What the study itself
            varies is refused in all but the first, which may be a preset.
        seeds: Of each variant, a cell each. Others that were done in the same folder before, with the same settings,
            stay in the table.
        progress: Where to report; nowhere by default.

    Raises:
        InputError: Something handed in breaks a rule.
        RunError: A run went wrong; what was saved stays.
    """
    progress, processes = progress or SilentReporter(), join()
    _refuse_varied(study, layers[1:])
    base = make_config(*layers, subject=f"pgnas study {study.name}")
    variants = _checked(study, base, seeds)
    processes.from_first(lambda: _require_as_begun(study, variants, base, seeds))
    with _folder(Path(base.out), processes):
        measurements = _measured(study, lambda: _done_before(study, variants, base, seeds), processes)
        for seed in seeds:
            done: dict[str, Cell] = {}
            for variant in variants:
                progress.note(f"{study.name}: {variant.title}, seed {seed}")
                cell = _planned(variant, base, seed, done, processes, progress)
                run(cell.config, progress=progress)
                if variant.finetuned is not None and study.finetuning is not None:
                    finetune(cell.path, study.finetuning, progress=progress)
                done[variant.name] = cell
            processes.from_first(functools.partial(study.finish, done))
            measurements += _measured(study, done.values, processes)
            result = StudyResult(study, Path(base.out), tuple(measurements))
            processes.from_first(result.write)
    return result


def _refuse_varied(study: Study, layers: Sequence[Mapping[str, object]]) -> None:
    """Settings that the study decides cannot be given."""
    varied = {**study.varied, "seed": "use --seeds"}
    for layer in layers:
        for name, remedy in varied.items():
            if name in layer:
                subject = "--" + name.replace("_", "-")
                rule = f"is decided by pgnas study {study.name}"
                raise ConfigError(subject, rule, value=layer[name], remedy=remedy)


def _checked(study: Study, base: RunConfig, seeds: Sequence[int]) -> tuple[Variant, ...]:
    """The variants, once every cell's settings are known to be good."""
    require_different("--seeds", seeds)
    if base.ranking != "exhaustive":
        rule = "must be exhaustive in a study, which needs every candidate's accuracy"
        raise ConfigError("--ranking", rule, value=base.ranking, remedy="leave it out")
    if base.finalists:
        rule = "must be 0 in a study, which compares candidates as they are ranked"
        raise ConfigError("--finalists", rule, value=base.finalists, remedy="leave it out")
    if (Path(base.out) / CONFIG_NAME).exists():
        raise RunFolderError(f"--out {base.out}", "must not be a run's own folder", remedy="choose another --out")
    variants = tuple(study.variants(base))
    for variant in variants:
        for seed in seeds:
            with told_under("--seeds", instead_of="--seed"):
                _config(variant, base, seed)
    return variants


def _require_as_begun(study: Study, variants: Sequence[Variant], base: RunConfig, seeds: Sequence[int]) -> None:
    """Cells that were begun go on with the same settings; what others settled for them stays as it was.

    Raises:
        RunFolderError: One was begun, or fine-tuned, with other settings.
    """
    for seed in seeds:
        for variant in variants:
            config = _config(variant, base, seed)
            path = Path(config.out)
            if not (path / CONFIG_NAME).exists():
                continue
            _as_begun(variant, config)
            if variant.finetuned is not None and study.finetuning is not None:
                with RunFolder.open(path, writer=False) as folder:
                    require_same_tuning(folder, study.finetuning)


def _as_begun(variant: Variant, config: RunConfig) -> RunConfig:
    """The settings of a cell that was begun; what others settled for it is as it was then.

    Raises:
        RunFolderError: It was begun with other settings.
    """
    there = read_config(Path(config.out))
    names = () if variant.settled is None else variant.settled.names
    config = replace(config, **{name: getattr(there, name) for name in names})
    require_same(Path(config.out), there, config)
    return config


def _config(variant: Variant, base: RunConfig, seed: int, settled: Settings | None = None) -> RunConfig:
    settings = {**variant.settings, **(settled or {})}
    out = str(Path(base.out) / f"{variant.name}-seed{seed}")
    return make_config(asdict(base), settings, {"seed": seed, "out": out})


def _planned(
    variant: Variant, base: RunConfig, seed: int, done: Mapping[str, Cell], processes: Processes, progress: Progress
) -> Cell:
    """The cell, its settings settled by those of its seed that are done."""
    config, settled = _config(variant, base, seed), variant.settled
    if settled is None:
        return Cell(variant, config)
    reference = done[settled.reference].path

    def settle() -> dict[str, object]:
        if (Path(config.out) / CONFIG_NAME).exists():  # as it was begun
            there = asdict(read_config(Path(config.out)))
            return {name: there[name] for name in settled.names}
        with RunFolder.open(reference, writer=False) as folder:
            found, note = settled.find(Context(folder, SilentReporter()))
        progress.note(f"{reference.name}: {note}")
        return found

    return Cell(variant, _config(variant, base, seed, processes.from_first(settle)))


def _done_before(study: Study, variants: Sequence[Variant], base: RunConfig, seeds: Sequence[int]) -> list[Cell]:
    """The cells of other seeds in the study's folder that are all done, with these settings: they stay in its table."""
    prefix = f"{variants[0].name}-seed"
    named = [path.name.removeprefix(prefix) for path in Path(base.out).glob(f"{prefix}*")]
    others = sorted(int(name) for name in named if name.isdecimal() and int(name) not in seeds)
    found: list[Cell] = []
    for seed in others:
        cells = [_done_cell(study, variant, base, seed) for variant in variants]
        found += [cell for cell in cells if cell is not None] if None not in cells else []
    return found


def _done_cell(study: Study, variant: Variant, base: RunConfig, seed: int) -> Cell | None:
    config = _config(variant, base, seed)
    try:
        config = _as_begun(variant, config)
        with RunFolder.open(config.out, writer=False) as folder:
            done = folder.stage_done("report")
            if variant.finetuned is not None and study.finetuning is not None:
                done = done and is_finetuned(folder, study.finetuning)
    except InputError:  # not begun, damaged, or with other settings
        return None
    return Cell(variant, config) if done else None


def _measured(study: Study, cells: Callable[[], Iterable[Cell]], processes: Processes) -> list[Measurement]:
    """What cells contribute, read by the first process."""
    rows = processes.from_first(lambda: [asdict(m) for cell in cells() for m in study.measure(cell)])
    return [Measurement(row["row"], row["seed"], row["values"], tuple(row["accuracies"])) for row in rows]


@contextlib.contextmanager
def _folder(path: Path, processes: Processes) -> Iterator[None]:
    """The study's folder; a study that is refused before its first cell began leaves none behind."""
    existed = path.exists()
    try:
        yield
    except InputError:
        with processes.alone(), contextlib.suppress(OSError):  # not empty, or not made
            if processes.is_first and not existed:
                path.rmdir()
        raise
