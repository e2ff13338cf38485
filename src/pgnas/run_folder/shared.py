"""One run folder for all processes of a run: the first reads and writes, the others are told what it read."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from torch import Tensor

from pgnas.config import RunConfig
from pgnas.config_file import format_settings, make_config, parse_settings
from pgnas.processes import Processes
from pgnas.run_folder import tensors
from pgnas.run_folder.folder import RunFolder


class SharedFolder(RunFolder):
    """A run folder whose methods all processes call together; only the first needs to see the disk.

    While a process works alone (:class:`pgnas.processes.Processes`), the first reads and writes by itself; what the
    others would write is left out, and they have nothing to read from.

    Args:
        processes: The processes.
        own: The folder, on the first process.
        path: Where it is.
        config: The settings of the run.
    """

    def __init__(self, processes: Processes, own: RunFolder | None, path: Path, config: RunConfig) -> None:
        self.path, self.config = path, config
        self._processes, self._own = processes, own

    @classmethod
    def share(cls, processes: Processes, make: Callable[[], RunFolder]) -> RunFolder:
        """The folder that the first process makes or opens; for a single process, just that.

        Raises:
            PgnasError: The first process could not.
        """
        if not processes.communicates:
            return make()
        own: list[RunFolder] = []

        def describe() -> tuple[str, str]:
            own.append(make())
            return str(own[0].path), format_settings(own[0].config)

        path, settings = processes.from_first(describe)
        config = make_config(parse_settings(settings, subject=path), {"out": path}, subject=path)
        return cls(processes, own[0] if own else None, Path(path), config)

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        return self._own is not None

    @property
    def lock_file(self) -> Path:
        """The file whose lock the first process holds."""
        return self._first().lock_file

    def close(self) -> None:
        """Let others write; may be called twice."""
        if self._own is not None:
            self._own.close()

    def discard(self, *, remove_folder: bool) -> None:
        """As :meth:`RunFolder.discard`; the first process does it, without telling."""
        if self._own is not None:
            self._own.discard(remove_folder=remove_folder)

    def __enter__(self) -> Self:
        return self

    def require(self, name: str, *, stage: str) -> Path:
        """The path of ``name`` on the first process's disk."""
        return Path(self._told(lambda folder: str(folder.require(name, stage=stage))))

    def read_json(self, name: str, *, stage: str) -> object:
        """The value of the JSON file ``name``, which ``stage`` writes."""
        value: object = self._told(lambda folder: folder.read_json(name, stage=stage))
        return value

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write ``data`` as ``name``."""
        self._done(lambda folder: folder.write_bytes(name, data))

    def append_line(self, name: str, row: Mapping[str, object]) -> None:
        """Add a row to the JSON-lines file ``name``."""
        self._done(lambda folder: folder.append_line(name, row))

    def read_lines(self, name: str) -> list[dict[str, object]]:
        """The rows of the JSON-lines file ``name``; none if it is absent."""
        rows: list[dict[str, object]] = self._told(lambda folder: folder.read_lines(name))
        return rows

    def truncate_lines(self, name: str, rows: int) -> None:
        """Keep the first ``rows`` rows of ``name``."""
        self._done(lambda folder: folder.truncate_lines(name, rows))

    def save_checkpoint(self, name: str, state: Mapping[str, object], step: int) -> None:
        """Write a checkpoint; the states of all processes are the same."""
        self._done(lambda folder: folder.save_checkpoint(name, state, step))

    def load_checkpoint(self, name: str) -> dict[str, object] | None:
        """The newest intact checkpoint of ``name``, on the CPU."""

        def read(folder: RunFolder) -> bytes:
            buffer = io.BytesIO()
            torch.save(folder.load_checkpoint(name), buffer)
            return buffer.getvalue()

        state = torch.load(io.BytesIO(self._told_bytes(read)), map_location="cpu", weights_only=True)
        return None if state is None else dict(state)

    def delete_checkpoints(self, name: str) -> None:
        """Remove the checkpoints of ``name``."""
        self._done(lambda folder: folder.delete_checkpoints(name))

    def save_tensors(self, name: str, values: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        """Write ``values`` as a safetensors file."""
        self._done(lambda folder: folder.save_tensors(name, values, metadata))

    def load_tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors, on the CPU, and the metadata of a safetensors file."""
        known: list[dict[str, str]] = []

        def read(folder: RunFolder) -> bytes:
            values, metadata = folder.load_tensors(name)
            known.append(metadata)
            return safetensors.torch.save(tensors.without_shared_memory(values))

        values = safetensors.torch.load(self._told_bytes(read))
        return values, dict(self._processes.from_first(lambda: known[0]))

    def stage_done(self, name: str) -> bool:
        """Whether the stage ``name`` has been finished."""
        return bool(self._told(lambda folder: folder.stage_done(name)))

    def stage_seconds(self, name: str) -> float:
        """The seconds that ``name`` has taken over all sessions."""
        return float(self._told(lambda folder: folder.stage_seconds(name)))

    def stage_facts(self, name: str) -> dict[str, object]:
        """What :meth:`mark_done` recorded of ``name``."""
        return dict(self._told(lambda folder: folder.stage_facts(name)))

    def add_seconds(self, name: str, seconds: float) -> None:
        """Count the seconds of a part of ``name`` on the first process."""
        self._done(lambda folder: folder.add_seconds(name, seconds))

    def mark_done(self, name: str, seconds: float, **facts: object) -> None:
        """Record that ``name`` is finished, with the first process's facts."""
        self._done(lambda folder: folder.mark_done(name, seconds, **facts))

    def forget_from(self, name: str) -> None:
        """Forget the stage ``name`` and all that began after it."""
        self._done(lambda folder: folder.forget_from(name))

    def _writable(self, name: str) -> Path:
        return self._first()._writable(name)

    def _first(self) -> RunFolder:
        if self._own is None:
            raise RuntimeError("only the first process of a run sees its folder")
        return self._own

    def _told(self, read: Callable[[RunFolder], Any]) -> Any:
        return self._processes.from_first(lambda: read(self._first()))

    def _told_bytes(self, read: Callable[[RunFolder], bytes]) -> bytes:
        if not self._processes.communicates:
            return read(self._first())
        found = [b""]

        def keep() -> None:
            found[0] = read(self._first())

        self._processes.from_first(keep)
        return self._processes.send(found[0])

    def _done(self, write: Callable[[RunFolder], None]) -> None:
        if self._processes.communicates or self._own is not None:
            self._processes.from_first(lambda: write(self._first()))
