"""Work on one cell: find the network, train it, score it, keep the result. A killed cell goes on where it was."""

from __future__ import annotations

import copy
import functools
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from bench.peers import budget
from bench.peers.cells import Cell
from bench.peers.methods import METHODS, Method, random_settings
from bench.peers.methods.base import TRAINED, Facts, commit, counts, train_plainly
from torch import nn

from pgnas.config import RunConfig
from pgnas.console import make_reporter
from pgnas.run_folder import RunFolder
from pgnas.stages.context import Context
from pgnas.stages.pipeline import do_stage
from pgnas.stages.schedule import cosine_schedule
from pgnas.stages.store import FolderStore
from pgnas.stages.training import recalibrate

IMAGE_SIZE = 16
DECIDED_AT = "25%"
"""As of a search under a cap; random search has none of its own, so it must be said."""
TUNING_LR = 0.03
"""Peak learning rate of the extra epochs after a trained start."""
PACKAGES = ("torch", "pgnas", "torch-pruning", "nvidia-modelopt")


@dataclass(frozen=True)
class Work:
    """What all cells of a command share.

    Attributes:
        out: Folder of the bench.
        data: What ``pgnas run --data`` takes.
        channels: Of the images.
        compile: ``auto``, ``on`` or ``off``.
        extra: Epochs after a trained start, each counted from the network found.
    """

    out: Path
    data: str
    channels: int = 3
    compile: str = "auto"
    extra: tuple[int, ...] = (1, 3, 10)


def work_on(cell: Cell, work: Work) -> None:
    """Do a cell and keep its result, unless that is there."""
    if cell.result(work.out).is_file():
        return
    method = METHODS[cell.method]
    if cell.start == "trained" and method.finding_trained is None:
        raise ValueError(f"{cell.method} has no use for a trained full network")
    with opened(cell, work) as run:
        _find(run, method, cell)
        if cell.start == "scratch":
            do_stage(run, "train", method.train)
        else:
            for epochs in work.extra:
                do_stage(run, f"tune{epochs}", functools.partial(_tune, method=method, epochs=epochs))
        do_stage(run, "scores", functools.partial(_score, method=method, cell=cell, work=work))
        cell.write(work.out, _result(run, method, cell))


@contextmanager
def opened(cell: Cell, work: Work) -> Iterator[Context]:
    """The cell's run."""
    reporter = make_reporter()
    try:
        with RunFolder.create_or_resume(settings(cell, work)) as folder:
            yield Context(folder, reporter)
    finally:
        reporter.close()


def settings(cell: Cell, work: Work) -> RunConfig:
    """The settings of a cell's run: those that all methods share, and the method's own."""
    method = METHODS[cell.method]
    given: dict[str, Any] = {
        "model": cell.base.spec,
        "data": work.data,
        "out": str(cell.folder(work.out)),
        "image_size": IMAGE_SIZE,
        f"max_{cell.base.capped}": cell.cap,
        "seed": cell.seed,
        "compile": work.compile,
        "candidates": cell.candidates,
        "precision": cell.precision,
    }
    if cell.start == "scratch":
        given |= {"budget": str(cell.epochs), **method.settings}
        if "dense" in method.finding:
            given.setdefault("decide_at", cell.dense_share)
    else:
        given |= {"epochs": 1, "weights": str(trained_full(cell, work)), **method.settings_trained}
    if cell.method == "random":
        del given[f"max_{cell.base.capped}"]
        shape = (work.channels, IMAGE_SIZE, IMAGE_SIZE)
        given = {"decide_at": DECIDED_AT, **given, **random_settings(cell, shape)}
    return RunConfig(**given)


def trained_full(cell: Cell, work: Work) -> Path:
    """The weights of the trained full network, trained if they are not there."""
    work_on(cell.full, work)
    return cell.full.folder(work.out) / TRAINED


def _find(run: Context, method: Method, cell: Cell) -> None:
    stages = method.finding if cell.start == "scratch" else method.finding_trained or {}
    for name, stage in stages.items():
        do_stage(run, name, stage)


def _recalibrated(run: Context, network: nn.Module) -> nn.Module:
    changed = copy.deepcopy(network)
    recalibrate(changed, run.calibration_batches(), engine=run.engine)
    return changed


def _tune(run: Context, store: FolderStore, *, method: Method, epochs: int) -> Facts:
    """So many epochs of the network found, with a schedule of their own."""
    assert method.found is not None
    network = _recalibrated(run, method.found(run))
    schedule = cosine_schedule(TUNING_LR, epochs * run.steps_an_epoch)
    train_plainly(run, store, network, name=f"tune{epochs}", epochs=range(epochs), schedule=schedule)
    run.folder.save_tensors(f"tuned{epochs}.safetensors", network.state_dict())
    return {"epochs": epochs}


def _tuned(run: Context, method: Method, epochs: int) -> nn.Module:
    assert method.found is not None
    network = method.found(run)
    network.load_state_dict(run.folder.load_tensors(f"tuned{epochs}.safetensors")[0])
    return network


def _score(run: Context, store: FolderStore, *, method: Method, cell: Cell, work: Work) -> Facts:
    """The stage that reads the test split: once, at the end, when nothing is left to choose."""
    scores: Facts = {}
    if method.found is not None:
        network = method.found(run)
        scores["before"] = _both(run, network)
        scores["before_recalibrated"] = _both(run, _recalibrated(run, network))
    if cell.start == "scratch":
        network = method.trained(run)
        scores["after"] = _both(run, network)
    else:
        scores["extra"] = {str(epochs): _both(run, _tuned(run, method, epochs)) for epochs in work.extra}
    return {"scores": scores, "counts": asdict(counts(run, network))}


def _both(run: Context, network: nn.Module) -> dict[str, float]:
    return {
        "val": run.score(network, run.data.estimate).metric,
        "test": run.score(network, run.data.test).metric,
    }


def _result(run: Context, method: Method, cell: Cell) -> dict[str, Any]:
    facts: Any = run.folder.stage_facts("scores")
    caps = cell.caps(run.full)
    found, spent = facts["counts"], method.spent(run)
    epochs = int(str(run.folder.stage_facts("train").get("epochs", 0)))
    trained = budget.of_training(epochs, macs=found["macs"], full_macs=run.full.macs)
    stages = [name for name in (*method.finding, "train") if run.folder.stage_done(name)]
    seconds = {name: round(_seconds(run, name), 1) for name in stages}
    return {
        **facts["scores"],
        "full": asdict(run.full),
        "found": found,
        "cap": caps,
        "cap_met": all(found[kind] <= cap for kind, cap in caps.items()),
        "compute": {"finding": spent, "training": trained, "total": spent + trained},
        "epochs_trained": epochs,
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "images": {"train": run.recipe.examples_an_epoch, "test": len(run.data.test)},
        "stages": {name: run.folder.stage_facts(name) for name in stages},
        "settings": {key: value for key, value in run.config.given().items() if key not in ("out", "data", "weights")},
        "machine": {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "processor": platform.machine()},
        "packages": _versions(),
        "commit": commit(),
    }


def _seconds(run: Context, stage: str) -> float:
    """Of a stage; if another cell did its work, that cell's."""
    return float(str(run.folder.stage_facts(stage).get("took", run.folder.stage_seconds(stage))))


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
