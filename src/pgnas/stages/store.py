"""Checkpoints, measurements and TensorBoard of a run, in its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pgnas.run_folder import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class FolderStore:
    """Keeps a stage's checkpoints and rows in a run folder, and counts its seconds.

    Args:
        folder: The run folder, open for writing.
        stage: The stage whose seconds are counted.
        now: A monotonic clock in seconds.
    """

    def __init__(self, folder: RunFolder, stage: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._stage, self._now = folder, stage, now
        self._since = self._saved = now()
        self._writer: SummaryWriter | None = None

    def load(self, phase: str) -> dict[str, Any] | None:
        """The newest intact checkpoint of a phase."""
        return self._folder.load_checkpoint(phase)

    def save(self, phase: str, state: Mapping[str, Any], step: int) -> None:
        """Keep a checkpoint, and count the time since the last."""
        self._folder.save_checkpoint(phase, state, step)
        self._folder.add_seconds(self._stage, self.lap())
        self._saved = self._now()

    def due(self) -> bool:
        """Whether ``--checkpoint-minutes`` have passed since the last checkpoint; the first process's clock decides."""
        return self._folder.writes and self._now() - self._saved >= 60 * self._folder.config.checkpoint_minutes

    def log(self, row: Mapping[str, Any]) -> None:
        """Add a row to metrics.jsonl and to TensorBoard."""
        self._folder.append_metrics(row)
        if not self._folder.writes:
            return
        writer = self._tensorboard(int(row["epoch"]))
        for key, value in _scalars({key: value for key, value in row.items() if key not in ("stage", "epoch")}):
            writer.add_scalar(f"{row['stage']}/{key}", value, int(row["epoch"]))
        writer.flush()

    def rewind(self, phase: str, epoch: int) -> None:
        """Drop the rows that a killed run wrote after its last checkpoint."""
        rows = self._folder.read_metrics()
        for index, row in enumerate(rows):
            number = row.get("epoch")
            if row.get("stage") == phase and isinstance(number, int) and number > epoch:
                self._folder.truncate_metrics(index)
                return

    def lap(self) -> float:
        """Seconds since the last call, or since the beginning."""
        now = self._now()
        self._since, seconds = now, now - self._since
        return seconds

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _tensorboard(self, epoch: int) -> SummaryWriter:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step hides what a killed session logged from this epoch on.
            self._writer = SummaryWriter(str(self._folder.file(f"tensorboard/{self._stage}")), purge_step=epoch)
        return self._writer


def _scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers among ``values``, those of a nested mapping as ``outer/inner``."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}/{inner}", number) for inner, number in _scalars(value))
        elif isinstance(value, int | float):
            yield key, value
