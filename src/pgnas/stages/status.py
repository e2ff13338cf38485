"""``pgnas status RUN``: how far a run has come, read from outside while it goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pgnas.report.values import number, section
from pgnas.run_folder import RunFolder, is_locked
from pgnas.stages import joint
from pgnas.stages.finetuning import FINETUNE, tuning_command
from pgnas.stages.noting import PROGRESS_NAME
from pgnas.stages.pipeline import STAGES
from pgnas.stages.reporting import commands, found

State = Literal["running", "interrupted", "finished", "partial"]


@dataclass(frozen=True)
class Status:
    """How far a run has come.

    Attributes:
        path: The run folder.
        state: ``running``: a process is at it; ``finished``: all stages are done; ``interrupted``: it stopped amid a
            stage; ``partial``: it stopped between two.
        done: The stages that are done, in order.
        stage: The stage at work, or amid which the run stopped.
        position: Steps of it behind, and all of them, once it has told.
        seconds_left: Until its end at the pace of the last note, if it is running and has one.
        seconds_old: Age of the last note.
        measured: The latest measurements, such as ``epoch``, ``loss``, ``accuracy``, ``cost`` and ``lambda``.
        resume: The command that goes on; None if the run is finished or was begun from Python.
    """

    path: Path
    state: State
    done: tuple[str, ...]
    stage: str | None
    position: tuple[int, int] | None
    seconds_left: float | None
    seconds_old: float | None
    measured: Mapping[str, float]
    resume: str | None


def status(path: str | Path) -> Status:
    """The status of a run; nothing is written, and a running one is not disturbed.

    Raises:
        RunFolderError: There is no run.
        FileError: A file of the run is damaged.
    """
    with RunFolder.open(path, writer=False) as folder:
        running = is_locked(folder.path)
        noted = section({"noted": found(folder, PROGRESS_NAME)}, "noted")
        done = tuple(name for name in STAGES if folder.stage_done(name))
        stage = str(noted["stage"]) if noted.get("stage") else None
        behind, total, at = (number(noted.get(key)) for key in ("done", "total", "at"))
        amid = None if stage is None or _has_ended(folder, stage) else stage
        state = _state(() if amid in (FINETUNE, joint.STAGE) else done, running=running, amid=amid is not None)
        rows = [row for row in folder.read_metrics() if row.get("stage") in (stage, "search", "train")]
        last = [row for row in rows if row.get("stage") == stage] or rows
        amid_it = section(noted, "fields") if state in ("running", "interrupted") else {}
        measured = {**(last[-1] if last else {}), **amid_it}
        return Status(
            path=folder.path,
            state=state,
            done=done,
            stage=stage if state in ("running", "interrupted") else None,
            position=None if behind is None or not total else (int(behind), int(total)),
            seconds_left=number(noted.get("seconds_left")),
            seconds_old=None if at is None else max(0.0, time.time() - at),
            measured={key: value for key, given in measured.items() if (value := number(given)) is not None},
            resume=None if state == "finished" else _resume(folder, amid),
        )


def _has_ended(folder: RunFolder, stage: str) -> bool:
    """Whether a stage is done; one that several networks of a front have together is not the run's own."""
    return folder.stage_done(stage) or (stage == joint.STAGE and _front(folder).get("finished") is True)


def _front(folder: RunFolder) -> dict[str, object]:
    return folder.stage_facts(joint.UNDER_WAY)


def _resume(folder: RunFolder, amid: str | None) -> str | None:
    """The command that goes on with what stopped amid a stage, or between two (None)."""
    if amid == FINETUNE:
        return tuning_command(folder)
    if amid == joint.STAGE:
        command = _front(folder).get("command")
        return None if command is None else str(command)
    return next(reversed(commands(folder)), None)


def _state(done: tuple[str, ...], *, running: bool, amid: bool) -> State:
    if running:
        return "running"
    if done == tuple(STAGES):
        return "finished"
    return "interrupted" if amid else "partial"
