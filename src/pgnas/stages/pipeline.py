"""Runs and their stages: each reads what the earlier ones wrote, and a rerun takes up where a kill left off."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pgnas import config_file
from pgnas.config import RunConfig, field_names
from pgnas.data import DataSet
from pgnas.errors import ConfigError, InputError
from pgnas.nn.copying import copied
from pgnas.processes import Processes, join
from pgnas.progress import HeldReporter, Progress, SilentReporter
from pgnas.run_folder import RunFolder, SharedFolder
from pgnas.run_folder.tensors import load_tensors
from pgnas.stages import finishing, network_file, searching
from pgnas.stages.baselines import NO_WIDTH, train_baselines
from pgnas.stages.context import HANDED_IN, Context, state_digest
from pgnas.stages.ranking_budget import require_ranking_budget
from pgnas.stages.result import RunResult, result_fields
from pgnas.stages.store import FolderStore
from pgnas.stages.training import parts_of
from pgnas.supernets import has_width

Stage = Callable[[Context, FolderStore], dict[str, Any]]
STAGES: dict[str, Stage] = {
    "search": searching.search,
    "sample": searching.sample,
    "extract": searching.extract,
    "train": searching.train,
    "export": finishing.export,
    "evaluate": finishing.evaluate,
    "report": finishing.report,
}
"""In the order in which they are done."""
OF_THE_FIRST = ("export", "report")
"""Stages that one process does for all; the others do together."""
_AFTER_EXTRACTION: dict[str, Callable[[Context], object]] = {
    "train": searching.extracted_network,
    "export": searching.trained_network,
    "evaluate": searching.trained_network,
}
"""Stages to the network that they begin with."""


def run(
    config: RunConfig,
    *,
    until: str = "report",
    progress: Progress | None = None,
    model: nn.Module | None = None,
    data: DataSet | None = None,
) -> RunResult:
    """Do all stages up to ``until`` in the folder ``config.out``; begun ones are resumed, done ones skipped.

    Args:
        config: The settings.
        until: The last stage to do.
        progress: Where to report; nowhere by default.
        model: The network, if ``config.model`` only describes it.
        data: The data, if ``config.data`` only describes it.

    Raises:
        InputError: Something handed in breaks a rule; nothing is left behind.
        RunError: The run went wrong; what was saved stays.
    """
    _require_stage(until)
    processes, existed = join(), os.path.exists(config.out)
    with SharedFolder.share(processes, lambda: RunFolder.create_or_resume(config)) as folder:
        context = Context(folder, progress or SilentReporter(), model=model, data=data, processes=processes)
        asked = list(STAGES)[: list(STAGES).index(until) + 1]
        undone = [name for name in asked if not folder.stage_done(name)]
        try:
            if undone:
                _check(context, undone[0])
        except BaseException:
            folder.discard(remove_folder=not existed)  # if it is new it would stand in the corrected command's way
            raise
        for name in undone:
            do_stage(context, name, STAGES[name], of_the_first=name in OF_THE_FIRST)
        return load_result(folder, context)


def run_stage(
    path: str | Path,
    name: str,
    *,
    progress: Progress | None = None,
    model: nn.Module | None = None,
    data: DataSet | None = None,
) -> RunResult:
    """Do one stage of a run begun earlier.

    Args:
        path: The run folder.
        name: The stage.
        progress: Where to report; nowhere by default.
        model: The network, if the run was handed one as an object.
        data: The run's data, if they have been read already, or were handed in.

    Raises:
        RunFolderError: There is no run, or an earlier stage has not been done.
    """
    _require_stage(name)
    processes = join()
    with SharedFolder.share(processes, lambda: RunFolder.open(path)) as folder:
        for earlier in list(STAGES)[: list(STAGES).index(name)]:
            folder.require_stage(earlier)
        context = Context(folder, progress or SilentReporter(), model=model, data=data, processes=processes)
        if not folder.stage_done(name):
            _check(context, name)
        do_stage(context, name, STAGES[name], of_the_first=name in OF_THE_FIRST)
        return load_result(folder, context)


def run_values(
    *,
    model: str | nn.Module,
    data: str | Path | DataSet,
    out: str | Path,
    progress: Progress | None = None,
    **settings: Any,
) -> RunResult:
    """The whole path in one call: search, sample, extract, train, export, evaluate, report.

    Args:
        model: What ``--model`` takes, or a network (it is copied; its weights are the starting point).
        data: What ``--data`` takes, or a :class:`pgnas.data.DataSet`.
        out: The run folder.
        progress: Where to report; nowhere by default.
        settings: The other settings of :class:`pgnas.RunConfig`, such as ``max_macs="40%"`` or ``epochs=20``.

    Raises:
        InputError: Something handed in breaks a rule.
        RunError: The run went wrong; what was saved stays.
    """
    network = model if isinstance(model, nn.Module) else None
    data_set = data if isinstance(data, DataSet) else None
    digest = "" if network is None else state_digest(network)
    model_name = model if isinstance(model, str) else f"{HANDED_IN}{type(model).__name__}:{digest}"
    data_name = f"{HANDED_IN}{data_set.name}" if data_set is not None else str(data)
    unknown = set(settings) - set(field_names())
    if unknown:
        raise ConfigError(f"pgnas.run setting '{min(unknown)}'", "must be one of RunConfig's", remedy="check its name")
    if data_set is not None:
        _refuse_of_reading(settings)
    config = config_file.make_config({"model": model_name, "data": data_name, "out": str(out), **settings})
    return run(config, progress=progress, model=network, data=data_set)


def _refuse_of_reading(settings: Mapping[str, Any]) -> None:
    """What says how data are read has no part in data that were."""
    defaults = {field.name: field.default for field in fields(RunConfig)}
    for name in ("image_size", "data_seed", "augment", "cutout"):
        if settings.get(name, defaults[name]) != defaults[name]:
            flag = "--" + name.replace("_", "-")
            rule = "must not be given with data that are read already"
            raise ConfigError(flag, rule, value=settings[name], remedy="give it to pgnas.load_data")


def _check(context: Context, name: str) -> None:
    """Whatever can be refused is refused here, before the stage ``name`` begins, and before a note is printed."""
    if context.folder.stage_done("evaluate"):
        return
    progress, held = context.progress, HeldReporter()
    context.progress = held
    try:
        if context.config.weights is not None and name == "search":
            with context.processes.together():
                load_tensors(Path(context.config.weights))  # first, as reading the data may take minutes
        context.engine  # noqa: B018 - made to be checked
        context.data  # noqa: B018
        context.caps  # noqa: B018
        context.supernet  # noqa: B018
        if name == "search":
            context.recipe.require_reachable(context.supernet)
            require_ranking_budget(context.config, len(context.data.select))
            _require_parts(context)
            _note_late_milestones(context, held)
            if "uniform" in context.config.baseline and not has_width(context.config.model):
                held.note(f"baseline uniform: {NO_WIDTH}, it will be left out")
            if context.config.device_costs is not None:
                context.timings.of(context.supernet, training=False)
                context.recipe.shaper(context.supernet)  # may need those of training as well
        if name != "search":
            context.posterior  # noqa: B018
        if name in ("extract", *_AFTER_EXTRACTION):
            context.found  # noqa: B018
        if name in _AFTER_EXTRACTION:
            _AFTER_EXTRACTION[name](context)
    finally:
        context.progress = progress
    held.release(progress)


def _require_parts(context: Context) -> None:
    """A network with BatchNorm may need more than one image in every part of a batch that a process passes forward."""
    config, processes = context.config, context.processes.world_size
    if config.sync_batch_norm and processes > 1:  # one image of each is several
        return
    share = min(config.batch_size, len(context.data.train)) // processes
    if min((part.stop - part.start for part in parts_of(share, config.accumulate)), default=0) != 1:
        return
    network = copied(context.built.module).cpu().train()
    try:
        with torch.random.fork_rng(devices=()), torch.no_grad():
            network(context.example[:1].cpu())
    except ValueError as error:
        flag = "--accumulate" if config.accumulate > 1 else "--batch-size"
        rule = "must leave more than one image in every part of a batch, as the network's BatchNorm needs"
        value = f"{config.batch_size} images in {config.accumulate} parts of {processes} processes' shares"
        raise ConfigError(flag, rule, value=value, remedy="raise --batch-size or lower --accumulate") from error


def _note_late_milestones(context: Context, progress: Progress) -> None:
    late = [epoch for epoch in context.config.milestones if epoch >= context.recipe.epochs]
    if late:
        shown, end = ",".join(f"{epoch:g}" for epoch in late), context.recipe.epochs
        progress.note(f"--milestones {shown} are not reached in {end} epochs: the learning rate does not fall there")


def do_stage(context: Context, name: str, stage: Stage, *, of_the_first: bool = False) -> None:
    """Do a stage unless it is done, and record it.

    Args:
        context: The run.
        name: The stage's name in the ledger.
        stage: What it does.
        of_the_first: Whether one process does it for all.
    """
    folder = context.folder
    lost = name == "export" and not context.processes.from_first(folder.file(network_file.WEIGHTS_NAME).exists)
    if folder.stage_done(name) and not lost:
        return
    context.progress.stage(name)
    store = FolderStore(folder, name)
    try:
        if name == "evaluate" and context.config.baseline:
            train_baselines(context)
            context.progress.stage(name)
        facts = context.processes.from_first(lambda: stage(context, store)) if of_the_first else stage(context, store)
    except BaseException as error:
        with context.processes.alone():
            if not isinstance(error, InputError):
                folder.add_seconds(name, store.lap())
        raise
    finally:
        store.close()
    folder.mark_done(name, store.lap(), **facts)
    context.progress.note(f"{name}: {folder.stage_seconds(name):.1f} s")


def _require_stage(name: str) -> None:
    if name not in STAGES:
        raise ConfigError("stage", f"must be one of {', '.join(STAGES)}", value=repr(name), remedy="choose one")


def load_result(folder: RunFolder, context: Context | None = None) -> RunResult:
    """The result of the stages done so far."""
    processes = Processes() if context is None else context.processes
    values: Any = processes.from_first(lambda: _values(folder))
    if context is None or not folder.writes:
        return RunResult(folder.path, values, functools.partial(network_file.load, folder.path))
    return RunResult(folder.path, values, functools.partial(_load_with, context))


def _values(folder: RunFolder) -> Any:
    has_result = folder.file("result.json").exists()
    return result_fields(folder) if has_result else finishing.partial_result(folder)


def _load_with(context: Context) -> nn.Module:
    with context.processes.alone():
        return searching.trained_network(context).eval()
