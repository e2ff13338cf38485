"""``pgnas evaluate RUN`` with more to ask: another number of sampled networks, other data to tell from the run's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from pgnas.data import DataSet
from pgnas.errors import FileError
from pgnas.processes import Processes, join
from pgnas.progress import Progress, SilentReporter
from pgnas.run_folder import RunFolder, SharedFolder
from pgnas.run_folder.storage import read_json
from pgnas.stages import finishing, pipeline
from pgnas.stages.assessing import (
    PREDICTIONS_NAME,
    RELIABILITY_NAME,
    TEMPERATURES_NAME,
    OtherData,
    are_temperatures,
    assess,
    other_data,
    tell_apart,
)
from pgnas.stages.context import Context
from pgnas.stages.ensemble import SAMPLES, require_samples
from pgnas.stages.result import RunResult, read_result
from pgnas.stages.store import FolderStore


def evaluate(
    path: str | Path,
    *,
    samples: int | None = None,
    ood: Sequence[str] = (),
    progress: Progress | None = None,
    model: nn.Module | None = None,
    data: DataSet | None = None,
) -> RunResult:
    """Do the stage ``evaluate`` unless it is done, and add what is asked for to ``result.json``.

    Args:
        path: The run folder.
        samples: Networks drawn from the posterior for the ensemble; ``None``: as many as there were, 16 at first.
        ood: Other data, each as ``--data`` takes them: how well uncertainty tells their test splits from the run's.
        progress: Where to report; nowhere by default.
        model: The network, if the run was handed one as an object.
        data: The data, if the run was handed them as an object.

    Raises:
        InputError: There is no run, an earlier stage has not been done, or the other data cannot be used.
    """
    if samples is not None:
        require_samples(samples)
    processes, progress = join(), progress or SilentReporter()
    others = dict[str, OtherData]()
    if ood:
        others, data = _others(path, ood, processes, model, data)
    pipeline.run_stage(path, "evaluate", progress=progress, model=model, data=data)
    with SharedFolder.share(processes, lambda: RunFolder.open(path)) as folder:
        context = Context(folder, progress, model=model, data=data, processes=processes)
        result = read_result(folder)
        before = result.get("uncertainty")
        if samples is None:
            samples = int(before["samples"]) if before else SAMPLES
        if not before or before["samples"] != samples or not processes.from_first(lambda: _is_kept(folder.path)):
            context.progress.stage("ensemble")
            result["uncertainty"], _ = processes.from_first(lambda: assess(context, samples=samples))
            folder.write_json("result.json", result)
        for spec, other in others.items():
            told = result["uncertainty"].setdefault("ood", {})
            if told.get(spec, {}).get("fingerprint") == other.fingerprint:
                continue
            context.progress.stage(f"told from {spec}")
            told[spec] = processes.from_first(functools.partial(tell_apart, context, other, samples=samples))
            folder.write_json("result.json", result)  # one by one: a killed command goes on with the next
        if folder.stage_done("report") or processes.from_first(folder.file("report.html").exists):
            processes.from_first(lambda: finishing.report(context, FolderStore(folder, "report")))
        return pipeline.load_result(folder, context)


def _is_kept(path: Path) -> bool:
    """Whether what was measured beside ``result.json`` is still there."""
    try:
        temperatures = read_json(path / TEMPERATURES_NAME)
    except FileError:
        return False
    return are_temperatures(temperatures) and all((path / n).is_file() for n in (PREDICTIONS_NAME, RELIABILITY_NAME))


def _others(
    path: str | Path, specs: Sequence[str], processes: Processes, model: nn.Module | None, data: DataSet | None
) -> tuple[dict[str, OtherData], DataSet | None]:
    """The other data, which are looked at before any work is done, and the run's own."""
    with SharedFolder.share(processes, lambda: RunFolder.open(path, writer=False)) as folder:
        folder.require_stage("export")
        context = Context(folder, SilentReporter(), model=model, data=data, processes=processes)
        context.network_preprocessing  # noqa: B018  (reads the folder, which the processes do one after the other)
        with processes.together():
            return {spec: other_data(context, spec) for spec in specs}, context.data
