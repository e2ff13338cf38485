"""``pgnas finetune RUN``: the found network of a finished run trained further, with plain weight decay."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pgnas.config import PEAK_LR, WEIGHT_DECAY, OptimizerName
from pgnas.data import DataSet
from pgnas.errors import ConfigError, InputError, RunFolderError
from pgnas.processes import join
from pgnas.progress import Progress, SilentReporter
from pgnas.run_folder import RunFolder, SharedFolder
from pgnas.run_folder.lock import LOCK_NAME
from pgnas.run_folder.storage import TEMPORARY_PREFIX, explained
from pgnas.stages import exporting, finishing, reporting
from pgnas.stages.context import Context
from pgnas.stages.phases import NetworkPhase
from pgnas.stages.pipeline import do_stage, load_result
from pgnas.stages.result import RunResult, read_result
from pgnas.stages.schedule import cosine_schedule
from pgnas.stages.searching import TUNED_NAME, trained_network
from pgnas.stages.store import FolderStore

FINETUNE = "finetune"
_SETTINGS = "finetune.settings"
_SAME = ("architecture.json", "found.safetensors")
"""What a copy of a run has in common with it."""
_LR_SHARE = 0.1
"""Of a run's learning rate, where none is given."""
_EXPORTED = (exporting.WEIGHTS_NAME, exporting.NETWORK_NAME, *finishing.FORMATS)
_WRITTEN = (TUNED_NAME, "metrics.jsonl", "result.json", reporting.REPORT_NAME, *_EXPORTED)


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How the network is trained further.

    Attributes:
        epochs: Epochs.
        lr: Peak learning rate of the run's optimiser (cosine after warm-up); ``None``: 0.01, with AdamW 1e-4.
        weight_decay: Decay of kernels and matrices; ``None``: 5e-4, with AdamW 0.05.
    """

    epochs: int = 10
    lr: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        bounds = {
            "--epochs": (self.epochs, 1 <= self.epochs <= 1_000_000, "lie in [1, 1000000]"),
            "--lr": (self.lr, self.lr is None or 0 < self.lr <= 1_000, "lie in (0, 1000]"),
            "--weight-decay": (self.weight_decay, 0 <= (self.weight_decay or 0) <= 1_000, "lie in [0, 1000]"),
        }
        for flag, (value, good, rule) in bounds.items():
            if not good:
                raise ConfigError(flag, f"must {rule}", value=value, remedy="choose a value inside")

    def peak_lr(self, optimizer: OptimizerName) -> float:
        """The learning rate in force."""
        return _LR_SHARE * PEAK_LR[optimizer] if self.lr is None else self.lr

    def decay(self, optimizer: OptimizerName) -> float:
        """The weight decay in force."""
        return WEIGHT_DECAY[optimizer] if self.weight_decay is None else self.weight_decay


def finetune(
    path: str | Path,
    settings: FinetuneSettings,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    model: nn.Module | None = None,
    data: DataSet | None = None,
) -> RunResult:
    """Train the found network of a finished run further, and export, evaluate and report it; resumed if begun.

    The run's own results stay in ``result.json``; the fine-tuned network's are added to it as ``finetuned``, and it is
    what the exported files hold then.

    Args:
        path: The run folder.
        settings: How.
        out: Work in a copy of the run folder, made here; ``None``: in the run folder itself.
        progress: Where to report; nowhere by default.
        model: The network, if the run was handed one as an object.
        data: The data, if the run was handed them as an object.

    Raises:
        RunFolderError: The run is not finished, has nothing to train, or was fine-tuned with other settings.
        DivergedError: The loss became NaN or infinite.
    """
    processes, source, copied = join(), Path(path), False
    if out is not None and Path(out).absolute() != source.absolute():
        copied = processes.from_first(lambda: _copy(source, Path(out)))
        source = Path(out)
    with SharedFolder.share(processes, lambda: RunFolder.open(source)) as folder:
        context = Context(folder, progress or SilentReporter(), model=model, data=data, processes=processes)
        try:
            _check(context)
        except InputError:
            if copied and folder.writes:  # it would stand in the way when the cause is mended
                shutil.rmtree(source, ignore_errors=True)
            raise
        _note_settings(folder, settings)
        do_stage(context, "finetune", lambda run, store: _train(run, store, settings))
        do_stage(context, "finetune.export", finishing.export, of_the_first=True)
        do_stage(context, "finetune.evaluate", _evaluate)
        do_stage(context, "finetune.report", finishing.report, of_the_first=True)
        return load_result(folder, context)


def _check(run: Context) -> None:
    """Whatever can be refused is refused here, before anything is noted or trained."""
    _require_finished(run.folder)
    if run.folder.stage_done("finetune"):
        return
    trained_network(run)
    if run.found.params == 0:
        path = str(run.folder.path)
        raise RunFolderError(path, "has nothing to fine-tune", value="a found network without parameters")
    run.processes.from_first(lambda: _require_files(run.folder))
    run.processes.from_first(lambda: _drawn(run.folder))


def _require_files(folder: RunFolder) -> None:
    """What will be written stands where it can be replaced."""
    for name in _WRITTEN:
        if folder.file(name).is_dir():
            rule, remedy = "must be a file, as it will be written", "remove it"
            raise RunFolderError(str(folder.file(name)), rule, value="a folder", remedy=remedy)


def _drawn(folder: RunFolder) -> None:
    """Draw the report, which reads what fine-tuning will read and not write."""
    reporting.render(folder, read_result(folder))


def _copy(source: Path, out: Path) -> bool:
    """A copy of a finished run without a fine-tuning of its own, or the one made before; whether it was made now."""
    with RunFolder.open(source, writer=False) as folder:
        _require_finished(folder)
    if os.path.lexists(out) and not out.is_dir():
        raise RunFolderError(f"--out {out}", "must be a folder", value="a file", remedy="choose another")
    if out.is_dir() and any(out.iterdir()):
        if not all((out / name).is_file() and _same_bytes(source / name, out / name) for name in _SAME):
            raise RunFolderError(
                f"--out {out}", f"must be empty or a copy of {source}", value="another folder", remedy="choose another"
            )
        return False
    beside = out.absolute().parent / f"{TEMPORARY_PREFIX}{out.name}"
    shutil.rmtree(beside, ignore_errors=True)
    ignored = shutil.ignore_patterns("checkpoints", LOCK_NAME, f"{TEMPORARY_PREFIX}*")
    with explained(out):
        shutil.copytree(source, beside, ignore=ignored)
    with RunFolder.open(beside) as copied:
        copied.forget_from(_SETTINGS)
        result = read_result(copied)
        copied.write_json("result.json", {key: value for key, value in result.items() if key != "finetuned"})
    beside.rename(out)  # a kill leaves a whole copy or none
    return True


def _same_bytes(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def _require_finished(folder: RunFolder) -> None:
    if not folder.stage_done("evaluate"):
        config = folder.file("config.toml")
        raise RunFolderError(
            str(folder.path),
            "must be a finished run",
            value="not evaluated yet",
            remedy=f"finish it first: pgnas run --config {config} --out {folder.path}",
        )
    read_result(folder)  # refused now rather than after the training


def tuning_command(folder: RunFolder) -> str:
    """The command that goes on with a fine-tuning that was begun."""
    words = ["pgnas", "finetune", str(folder.path)]
    for name, value in folder.stage_facts(_SETTINGS).items():
        words += ["--" + name.replace("_", "-"), str(value)]
    return shlex.join(words)


def is_finetuned(folder: RunFolder, settings: FinetuneSettings) -> bool:
    """Whether a run's found network has been fine-tuned, with these settings."""
    return folder.stage_done("finetune.report") and folder.stage_facts(_SETTINGS) == _in_force(folder, settings)


def _in_force(folder: RunFolder, settings: FinetuneSettings) -> dict[str, object]:
    optimizer = folder.config.optimizer
    return {**asdict(settings), "lr": settings.peak_lr(optimizer), "weight_decay": settings.decay(optimizer)}


def _note_settings(folder: RunFolder, settings: FinetuneSettings) -> None:
    require_same_tuning(folder, settings)
    if not folder.stage_facts(_SETTINGS):
        folder.mark_done(_SETTINGS, 0.0, **_in_force(folder, settings))


def require_same_tuning(folder: RunFolder, settings: FinetuneSettings) -> None:
    """Check that a run has not been fine-tuned with other settings.

    Raises:
        RunFolderError: It has, or such a fine-tuning was begun.
    """
    known, now = folder.stage_facts(_SETTINGS), _in_force(folder, settings)
    if known and known != now:
        differing = [name for name in now if known.get(name) != now[name]]
        value = ", ".join(f"{name} {known.get(name)} there, {now[name]} now" for name in differing)
        raise RunFolderError(
            str(folder.path), "was fine-tuned with other settings", value=value, remedy="add --out with another folder"
        )


def _train(run: Context, store: FolderStore, settings: FinetuneSettings) -> dict[str, Any]:
    network = trained_network(run)
    planned = run.recipe.planned_macs(run.found, settings.epochs)
    phase = NetworkPhase(
        network,
        name="finetune",
        engine=run.engine,
        optimizer=run.config.optimizer,
        schedule=cosine_schedule(settings.peak_lr(run.config.optimizer), settings.epochs * run.steps_an_epoch),
        loss=run.recipe.loss,
        weight_decay=settings.decay(run.config.optimizer),
        compiled=run.compile_choice("finetune", planned),
    )
    run.train(phase, range(settings.epochs), store)
    run.folder.save_tensors(TUNED_NAME, network.state_dict())
    return {"val_accuracy": run.score(network, run.data.estimate).metric}


def _evaluate(run: Context, store: FolderStore) -> dict[str, Any]:
    """Read the test split for the fine-tuned network, once, and add it to result.json."""
    test = run.score(trained_network(run), run.data.test)
    result = read_result(run.folder)
    tuned = {
        **{key: result["found"][key] for key in ("params", "macs")},
        **run.folder.stage_facts(_SETTINGS),
        **run.folder.stage_facts("finetune"),
        "test_accuracy": test.metric,
        "test_loss": test.loss,
        "test_images": test.count,
    }
    run.folder.write_json("result.json", {**result, "finetuned": tuned})
    return {"test_accuracy": test.metric}
