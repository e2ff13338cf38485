"""The training loop that every phase shares: epochs, checkpoints, measurements, divergence."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from pgnas.data import Batches
from pgnas.errors import DataError, DivergedError
from pgnas.progress import Progress
from pgnas.stages.engine import own_randomness, seed_step
from pgnas.stages.interrupting import deferred
from pgnas.stages.training import DIVERGED_REMEDY, Loader, Phase, Score, Store


def run_epochs(
    phase: Phase,
    loader: Loader,
    *,
    epochs: range,
    seed: int,
    store: Store,
    progress: Progress,
    validate: Callable[[], Score] | None = None,
) -> None:
    """Train a phase for the epochs of the run that belong to it, resuming from its newest checkpoint.

    Several processes train one network: each hands in its share of every batch, and all take the mean's step.

    Raises:
        DivergedError: The loss became NaN or infinite; the last checkpoint is kept.
        RunError: Another process failed, or no longer has the same network.
        KeyboardInterrupt: After Ctrl-C and a checkpoint, unless a second Ctrl-C came before it.
    """
    steps = len(loader)  # type: ignore[arg-type]
    phase.engine.processes.require_same("the steps of an epoch", str(steps))
    saved = store.load(phase.name)
    position = Position(epochs.start)
    if saved is not None:
        phase.load_state(saved["phase"])
        position = Position.from_dict(saved)
    store.rewind(phase.name, position.epoch)
    shown: dict[str, float] = {}
    with own_randomness(), deferred() as interrupted:
        while position.epoch < (stop := phase.stop(epochs.stop)):
            with phase.engine.synchronised(phase.network):
                _require_same(phase)
                here = range(epochs.start, stop)
                epoch = _Epoch(
                    phase, loader, position, epochs=here, seed=seed, store=store, progress=progress,
                    interrupted=interrupted,
                )  # fmt: skip
                row: dict[str, Any] = {"loss": epoch.train(shown), **phase.measure()}
                if validate is not None:
                    score = validate()
                    row |= {"accuracy": score.metric, "val_loss": score.loss}
            shown.update({key: row[key] for key in ("loss", "accuracy", "cost", "undecided") if key in row})
            epoch.tell(steps, shown)
            position = Position(position.epoch + 1)
            rate = phase.weights.param_groups[0]["lr"]
            store.log({"stage": phase.name, "epoch": position.epoch, "lr": rate, **row})
            phase.finish_epoch(position.epoch)
            store.save(phase.name, {"phase": phase.state(), **position.to_dict()}, position.epoch * steps)
            if phase.engine.processes.agree(signal=int(interrupted())):
                raise KeyboardInterrupt
        _require_same(phase)


@dataclass(frozen=True)
class Position:
    """How far a phase has come.

    Attributes:
        epoch: Epochs of the run that are behind.
        batch: Batches of the next one that are behind.
        loss_sum: Sum of their losses.
    """

    epoch: int
    batch: int = 0
    loss_sum: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Position:
        """The inverse of :meth:`to_dict`, among other entries."""
        return cls(int(saved["epoch"]), int(saved.get("batch", 0)), float(saved.get("loss_sum", 0.0)))


_GO_ON, _SAVE, _STOP = range(3)
"""What may follow a step; of several processes' wishes the largest is done."""


class _Epoch:
    """One epoch of training, from the position on."""

    def __init__(
        self, phase: Phase, loader: Loader, position: Position, *, epochs: range, seed: int, store: Store,
        progress: Progress, interrupted: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._interrupted = interrupted
        self._phase, self._loader, self._position = phase, loader, position
        self._epochs, self._seed, self._store, self._progress = epochs, seed, store, progress
        self._steps = len(loader)  # type: ignore[arg-type]

    def train(self, shown: Mapping[str, float]) -> float:
        """Train; the mean loss of the whole epoch."""
        phase, processes = self._phase, self._phase.engine.processes
        phase.network.train()
        total = torch.tensor(self._position.loss_sum, device=phase.engine.device)
        batches = self._batches()
        for index in range(self._position.batch, self._steps):
            step = self._position.epoch * self._steps + index
            error, loss, wish = None, total, _GO_ON
            try:
                with processes.alone():
                    loss = self._backward(_next(batches), step)
                    wish = self._wish() if index + 1 < self._steps else _GO_ON
            except Exception as caught:
                if self._interrupted() and not processes.communicates:  # Ctrl-C also ends a loader's workers
                    self._stop(index, float(total))
                error = caught
            wish = processes.agree(error, signal=wish)  # the first process's clock, any one's failure or Ctrl-C
            total += phase.update(loss, step)
            if index % max(1, self._steps // 20) == 0 or index + 1 == self._steps:
                self._require_finite(float(total))
                if index + 1 < self._steps:
                    self.tell(index + 1, {**shown, "loss": float(total) / (index + 1)})
            if wish == _STOP:
                self._stop(index + 1, float(total))
            if wish == _SAVE:
                self._save(index + 1, float(total))
        phase.engine.average_statistics(phase.network)
        return float(total) / max(1, self._steps)

    def _wish(self) -> int:
        """What this process would do after the step at hand."""
        if self._interrupted():
            return _STOP
        return _SAVE if self._store.due() else _GO_ON

    def _stop(self, batch: int, loss_sum: float) -> NoReturn:
        self._save(batch, loss_sum)
        raise KeyboardInterrupt

    def _batches(self) -> Iterator[Any]:
        """The epoch's batches from the position on; a loader of another kind must read the earlier ones, too."""
        epoch, first = self._position.epoch, self._position.batch
        set_epoch = getattr(self._loader, "set_epoch", None)
        seed_step(self._seed, self._phase.name, "order", epoch)  # for loaders that draw from the global generator
        if isinstance(self._loader, Batches):
            self._loader.set_epoch(epoch)
            return self._loader.every(1, first=first)
        if callable(set_epoch):
            set_epoch(epoch)
        return itertools.islice(iter(self._loader), first, None)

    def _backward(self, batch: Any, step: int) -> Tensor:
        inputs, targets = self._phase.engine.batch(batch)
        seed_step(self._seed, self._phase.name, step)
        self._phase.prepare_step(step)
        return self._phase.backward(inputs, targets, step)

    def tell(self, count: int, fields: Mapping[str, float]) -> None:
        """Tell that ``count`` of the epoch's steps are behind, and the latest measurements."""
        done = (self._position.epoch - self._epochs.start) * self._steps + count
        self._progress.advance(done, len(self._epochs) * self._steps, **{**fields, "epoch": self._position.epoch + 1})

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"the training loss of '{self._phase.name}'",
                "must stay finite",
                value=f"{loss} in epoch {self._position.epoch + 1}",
                remedy=DIVERGED_REMEDY,
            )

    def _save(self, batch: int, loss_sum: float) -> None:
        if not math.isfinite(loss_sum):  # what is kept must be worth going back to; the next report tells
            return
        self._phase.engine.average_statistics(self._phase.network)
        here = replace(self._position, batch=batch, loss_sum=loss_sum)
        step = here.epoch * self._steps + batch
        self._store.save(self._phase.name, {"phase": self._phase.state(), **here.to_dict()}, step)


def _next(batches: Iterator[Any]) -> Any:
    try:
        return next(batches)
    except StopIteration:
        raise DataError(
            "the training loader", "must give as many batches as its length says", remedy="check its length"
        ) from None


def _require_same(phase: Phase) -> None:
    """All processes must have the same network, optimisers and multipliers."""
    if phase.engine.processes.communicates:
        phase.engine.processes.require_same(f"the state of '{phase.name}'", digest(phase.state()))


def digest(state: Any) -> str:
    """A digest of nested containers of tensors and plain values."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, Mapping):
            for key, item in value.items():
                found.update(f"{key}:".encode())
                add(item)
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            found.update(repr(value).encode())

    add(state)
    return found.hexdigest()[:16]
