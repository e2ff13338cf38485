"""The one owner of ``runs/<name>/``."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from pgnas.config import RunConfig
from pgnas.config_file import format_settings
from pgnas.errors import RunFolderError
from pgnas.run_folder import admission, environment, storage, tensors
from pgnas.run_folder.admission import CONFIG_NAME
from pgnas.run_folder.ledger import Ledger
from pgnas.run_folder.lock import LOCK_NAME, Lock

ENV_NAME, METRICS_NAME, STAGES_NAME = "env.json", "metrics.jsonl", "stages.json"

_logger = logging.getLogger(__name__)


class RunFolder:
    """A run on disk. Make one with :meth:`create_or_resume` or :meth:`open`; close it, or use it in ``with``.

    Names given to the methods are relative to the folder (``"posterior.safetensors"``). Every write is whole or
    absent, and raises :class:`~pgnas.errors.StorageError` when the disk refuses it.

    Attributes:
        path: The folder.
        config: The settings of the run; ``config.out`` is where the folder is now.
    """

    def __init__(self, path: Path, config: RunConfig, lock: Lock | None, *, made: bool = False) -> None:
        self.path = path
        self.config = config
        self._lock = lock
        self._made = made
        self._written = {CONFIG_NAME}
        self._ledger = Ledger(path / STAGES_NAME)

    @classmethod
    def create_or_resume(cls, config: RunConfig) -> Self:
        """The folder ``config.out``: made if absent or empty, taken up again if it holds the same run.

        In a run of several processes only the first calls this; see :class:`pgnas.run_folder.SharedFolder`.

        Raises:
            RunFolderError: The folder cannot be made, holds something else or another run, or is being written.
            StorageError: The disk is full.
        """
        path = Path(config.out)
        admission.make(path)
        admission.refuse_foreign(path)
        lock = Lock(path)
        try:
            made = not (path / CONFIG_NAME).exists()
            if made:
                admission.refuse_foreign(path)  # again, now that nobody else can be filling it
                storage.write_bytes(path / CONFIG_NAME, format_settings(config).encode())
            admission.require_same(path, admission.read_config(path), config)
            return cls._prepared(path, config, lock, made=made)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, path: str | Path, *, writer: bool = True) -> Self:
        """The folder of a run begun earlier.

        Args:
            path: The folder.
            writer: Whether to take the folder's lock and repair what a kill left; ``False`` only reads.

        Raises:
            RunFolderError: ``path`` holds no run, or a damaged one, or (for a writer) is being written.
        """
        path = Path(path)
        if not os.path.isfile(path / CONFIG_NAME):
            raise RunFolderError(
                str(path), "must be a run folder", value=f"no {CONFIG_NAME} there", remedy="begin one with pgnas run"
            )
        if not writer:
            return cls(path, admission.read_config(path), None)
        lock = Lock(path)
        try:
            return cls._prepared(path, admission.read_config(path), lock, made=False)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _prepared(cls, path: Path, config: RunConfig, lock: Lock, *, made: bool) -> Self:
        """For a writer: clear what a killed process left behind and note the machine."""
        with storage.explained(path):
            storage.remove_temporaries(path)
        for lines in path.glob("*.jsonl"):
            storage.truncate_lines(lines)
        folder = cls(path, config, lock, made=made)
        folder._note_environment()
        return folder

    @property
    def writes(self) -> bool:
        """Whether this process may write."""
        return self._lock is not None

    @property
    def lock_file(self) -> Path:
        """The file whose lock the writer holds."""
        return self.path / LOCK_NAME

    def close(self) -> None:
        """Let others write; may be called twice."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def discard(self, *, remove_folder: bool) -> None:
        """Undo :meth:`create_or_resume` of a run that never began: remove what was written, and the folder if asked.

        A run that was resumed stays as it is, as do files that the user wrote and a folder that holds any.
        """
        if not self._made or self._lock is None:
            return
        for path in {self.path / name for name in self._written}:
            if path.is_file():
                path.unlink(missing_ok=True)
        self.lock_file.unlink(missing_ok=True)
        self.close()
        if remove_folder:
            with contextlib.suppress(OSError):  # not empty
                self.path.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Files

    def file(self, name: str) -> Path:
        """Where ``name`` is or would be.

        Raises:
            ValueError: ``name`` leads out of the folder.
        """
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name!r} leads out of the run folder")
        return self.path / name

    def require(self, name: str, *, stage: str) -> Path:
        """The path of ``name``, which ``stage`` writes.

        Raises:
            RunFolderError: It is not there.
        """
        path = self.file(name)
        if not path.exists():
            raise RunFolderError(
                str(self.path), f"must hold {name}", value="no such file", remedy=f"run pgnas {stage} {self.path} first"
            )
        return path

    def require_stage(self, name: str) -> None:
        """Check that a stage has been done.

        Raises:
            RunFolderError: It has not.
        """
        if not self.stage_done(name):
            remedy = f"run pgnas {name} {self.path} first"
            raise RunFolderError(str(self.path), f"must have the stage {name} done", remedy=remedy)

    def atomic(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A temporary path that becomes ``name`` when the ``with`` block ends well."""
        return storage.atomic(self._writable(name))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write ``data`` as ``name``."""
        storage.write_bytes(self._writable(name), data)

    def write_apart(self, name: str, data: bytes) -> None:
        """As :meth:`write_bytes`, by the first process of several without the others."""
        storage.write_bytes(self._writable(name), data)

    def write_text(self, name: str, text: str) -> None:
        """Write ``text`` as ``name``, in UTF-8."""
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: object) -> None:
        """Write ``value`` as standard JSON; NaN and infinities become ``null``."""
        self.write_text(name, storage.to_json(value, indent=2) + "\n")

    def read_json(self, name: str, *, stage: str) -> object:
        """The value of the JSON file ``name``, which ``stage`` writes.

        Raises:
            RunFolderError: It is not there.
            FileError: It is damaged.
        """
        return storage.read_json(self.require(name, stage=stage))

    def append_line(self, name: str, row: Mapping[str, object]) -> None:
        """Add a row to the JSON-lines file ``name``."""
        storage.append_line(self._writable(name), row)

    def read_lines(self, name: str) -> list[dict[str, object]]:
        """The rows of the JSON-lines file ``name``; none if it is absent."""
        return storage.read_lines(self.file(name))

    def truncate_lines(self, name: str, rows: int) -> None:
        """Keep the first ``rows`` rows of ``name``, so that a resumed stage does not write them twice."""
        storage.truncate_lines(self._writable(name), rows)

    def append_metrics(self, row: Mapping[str, object]) -> None:
        """Add a row to ``metrics.jsonl``."""
        self.append_line(METRICS_NAME, row)

    def read_metrics(self) -> list[dict[str, object]]:
        """The rows of ``metrics.jsonl``."""
        return self.read_lines(METRICS_NAME)

    def truncate_metrics(self, rows: int) -> None:
        """Keep the first ``rows`` rows of ``metrics.jsonl``."""
        self.truncate_lines(METRICS_NAME, rows)

    # Tensors

    def save_checkpoint(self, name: str, state: Mapping[str, object], step: int) -> None:
        """Write ``checkpoints/<name>-<step>.pt``, tensors and plain values only; the last two are kept."""
        tensors.save_checkpoint(self._writable("checkpoints"), name, state, step)

    def load_checkpoint(self, name: str) -> dict[str, object] | None:
        """The newest intact checkpoint of ``name``, on the CPU; damaged ones are passed over with a logged warning."""
        return tensors.load_checkpoint(self.file("checkpoints"), name)

    def delete_checkpoints(self, name: str) -> None:
        """Remove the checkpoints of ``name``: its stage is done or begins again."""
        tensors.delete_checkpoints(self._writable("checkpoints"), name)

    def save_tensors(self, name: str, values: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        """Write ``values`` as a safetensors file."""
        tensors.save_tensors(self._writable(name), values, metadata or {})

    def load_tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors, on the CPU, and the metadata of a safetensors file.

        Raises:
            FileError: The file is missing, truncated or of another format.
        """
        return tensors.load_tensors(self.file(name))

    # Stages

    def stage_done(self, name: str) -> bool:
        """Whether the stage ``name`` has been finished."""
        return self._ledger.done(name)

    def stage_seconds(self, name: str) -> float:
        """The seconds that ``name`` has taken over all sessions."""
        return self._ledger.seconds(name)

    def stage_facts(self, name: str) -> dict[str, object]:
        """What :meth:`mark_done` recorded of ``name``."""
        return self._ledger.facts(name)

    def add_seconds(self, name: str, seconds: float) -> None:
        """Count the seconds of a part of ``name``, say since the last checkpoint."""
        self._writable(STAGES_NAME)
        self._ledger.add_seconds(name, seconds)

    def mark_done(self, name: str, seconds: float, **facts: object) -> None:
        """Record that ``name`` is finished; ``seconds`` are those that :meth:`add_seconds` has not counted."""
        self._writable(STAGES_NAME)
        self._ledger.mark_done(name, seconds, facts)

    def forget_from(self, name: str) -> None:
        """Forget the stage ``name`` and all that began after it; their files stay until they are written again."""
        self._writable(STAGES_NAME)
        self._ledger.forget_from(name)

    def _writable(self, name: str) -> Path:
        if self._lock is None:
            raise RunFolderError(str(self.path), "is open for reading only", remedy="open it with writer=True")
        self._written.add(name)
        return self.file(name)

    def _note_environment(self) -> None:
        now, path = environment.describe(), self.file(ENV_NAME)
        try:
            before = json.loads(path.read_bytes())
            changed = environment.differences(before, now)
        except (OSError, ValueError, RecursionError, AttributeError):  # absent or damaged: it is only a note
            self.write_json(ENV_NAME, now)
            return
        if changed:
            _logger.warning("%s was begun elsewhere and may go on differently (%s)", self.path, "; ".join(changed))
