"""The training loop that every phase shares: epochs, checkpoints, measurements, divergence."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pgnas.errors import DivergedError
from pgnas.progress import Progress
from pgnas.stages.engine import Engine, own_randomness, seed_step
from pgnas.stages.schedule import Schedule
from pgnas.supernets import ramp_drop_path

Loss = Callable[[Any, Any], Tensor]
"""Mean loss in nats of a batch: (outputs, targets) to a scalar."""
Metric = Callable[[Any, Any], Tensor]
"""Scores of a batch, higher is better: (outputs, targets) to one score an example (B,), or their mean."""
Loader = Iterable[Any]
"""Batches (inputs, ..., targets); ``set_epoch`` is called before each epoch if it has one."""


class Store(Protocol):
    """Where a phase keeps its checkpoints and measurements."""

    def load(self, phase: str) -> dict[str, Any] | None:
        """The newest checkpoint of a phase."""

    def save(self, phase: str, state: Mapping[str, Any], epoch: int) -> None:
        """Keep a checkpoint."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Keep one row of measurements."""

    def rewind(self, phase: str, epoch: int) -> None:
        """Forget the phase's rows from ``epoch`` on."""


class NoStore:
    """Keeps the rows in memory and nothing else."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def load(self, phase: str) -> dict[str, Any] | None:
        """Nothing is kept."""
        return None

    def save(self, phase: str, state: Mapping[str, Any], epoch: int) -> None:
        """Nothing is kept."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Keep a row."""
        self.rows.append(dict(row))

    def rewind(self, phase: str, epoch: int) -> None:
        """Nothing was kept."""


class Phase(ABC):
    """A stretch of training: what is trained, by which loss, and what must be saved to go on.

    Attributes:
        name: Names its checkpoints and rows.
        network: What is trained, in train mode during the epochs.
        engine: Where.
        schedule: Learning rate of ``weights``.
        weights: Optimiser of the weights.
    """

    name: str
    network: nn.Module
    engine: Engine
    schedule: Schedule
    weights: torch.optim.Optimizer

    @abstractmethod
    def loss(self, inputs: tuple[Tensor, ...], targets: Any, step: int) -> Tensor:
        """The loss of one batch, in nats an example."""

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """All optimisers by name."""
        return {"weights": self.weights}

    def prepare_step(self, step: int) -> None:
        """Set what depends on the place in the run alone: the learning rate, and the drop-path probabilities."""
        for group in self.weights.param_groups:
            group["lr"] = self.schedule.at(step)
        ramp_drop_path(self.network, (step + 1) / self.schedule.steps)

    def step(self, inputs: tuple[Tensor, ...], targets: Any, step: int) -> Tensor:
        """One step of every optimiser; the loss before it, a scalar without gradient."""
        loss = self.loss(inputs, targets, step)
        for optimizer in self.optimizers().values():
            optimizer.zero_grad(set_to_none=True)
        self.engine.backward(loss)
        for optimizer in self.optimizers().values():
            optimizer.step()
        self.finish_step(step)
        return loss.detach()

    def finish_step(self, step: int) -> None:
        """What follows the optimisers' step; nothing, unless a phase says otherwise."""
        return

    def measure(self) -> dict[str, float]:
        """Measurements for the epoch's row; those that :class:`pgnas.progress.Progress` knows are shown."""
        return {}

    def state(self) -> dict[str, Any]:
        """Everything the next epoch depends on."""
        return {
            "network": dict(self.network.state_dict()),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers().items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        self.network.load_state_dict(state["network"])
        for name, optimizer in self.optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])


@dataclass(frozen=True)
class Score:
    """What a network achieves on held-out data.

    Attributes:
        metric: Mean score (accuracy in [0, 1] for the default metric).
        loss: Mean loss in nats an example.
        count: Examples.
    """

    metric: float
    loss: float
    count: int


def accuracy(outputs: Any, targets: Any) -> Tensor:
    """Whether each example is classified right: outputs (B, classes), targets (B,), to (B,) of 0 and 1."""
    correct: Tensor = outputs.argmax(1) == targets
    return correct.float()


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

    Raises:
        DivergedError: The loss became NaN or infinite; the last checkpoint is of the epoch before.
    """
    saved = store.load(phase.name)
    start = epochs.start
    if saved is not None:
        phase.load_state(saved["phase"])
        start = int(saved["epoch"])
    store.rewind(phase.name, start)
    shown: dict[str, float] = {}
    with own_randomness():
        for epoch in range(start, epochs.stop):
            loss = _train_epoch(phase, loader, epoch=epoch, epochs=epochs, seed=seed, progress=progress, shown=shown)
            row: dict[str, float] = {"loss": loss, **phase.measure()}
            if validate is not None:
                score = validate()
                row |= {"accuracy": score.metric, "val_loss": score.loss}
            shown.update({key: row[key] for key in ("loss", "accuracy", "cost", "undecided") if key in row})
            store.log({"stage": phase.name, "epoch": epoch + 1, "lr": phase.weights.param_groups[0]["lr"], **row})
            store.save(phase.name, {"phase": phase.state(), "epoch": epoch + 1}, epoch + 1)


def _train_epoch(
    phase: Phase,
    loader: Loader,
    *,
    epoch: int,
    epochs: range,
    seed: int,
    progress: Progress,
    shown: dict[str, float],
) -> float:
    phase.network.train()
    set_epoch = getattr(loader, "set_epoch", None)
    if callable(set_epoch):
        set_epoch(epoch)
    seed_step(seed, phase.name, "order", epoch)  # for loaders that draw their order from the global generator
    steps = len(loader)  # type: ignore[arg-type]
    total = torch.zeros((), device=phase.engine.device)
    count = 0
    for index, batch in enumerate(loader):
        step = epoch * steps + index
        inputs, targets = phase.engine.batch(batch)
        seed_step(seed, phase.name, step)
        phase.prepare_step(step)
        total += phase.step(inputs, targets, step)
        count += 1
        done = (epoch - epochs.start) * steps + index + 1
        if index % max(1, steps // 20) == 0 or index + 1 == steps:
            value = float(total) / count
            if not math.isfinite(value):
                raise DivergedError(
                    f"the training loss of '{phase.name}'",
                    "must stay finite",
                    value=f"{value} in epoch {epoch + 1}",
                    remedy="the last good checkpoint is kept; begin another run with a lower --lr",
                )
            progress.advance(done, len(epochs) * steps, **{**shown, "loss": value})
    return float(total) / max(1, count)


@torch.no_grad()
def evaluate(network: nn.Module, loader: Loader, *, engine: Engine, loss: Loss, metric: Metric = accuracy) -> Score:
    """Score a network on a loader, in eval mode; its mode is left as it was."""
    mode = network.training
    network.eval()
    metric_sum = torch.zeros((), dtype=torch.float64)
    loss_sum, count = 0.0, 0
    try:
        for batch in loader:
            inputs, targets = engine.batch(batch)
            with engine.autocast():
                outputs = network(*inputs)
                batch_loss = loss(outputs, targets)
            scores = metric(outputs, targets)
            examples = len(inputs[0])
            metric_sum += scores.double().mean().cpu() * examples
            loss_sum += float(batch_loss) * examples
            count += examples
    finally:
        network.train(mode)
    return Score(float(metric_sum) / max(1, count), loss_sum / max(1, count), count)


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Any], *, engine: Engine) -> bool:
    """Re-estimate every BatchNorm's mean and variance as the plain average over unlabelled training batches.

    Only the statistics change. Other layers run as in evaluation (no dropout).

    Returns:
        Whether there was anything to re-estimate.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return False
    mode = network.training
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's sign for a cumulative average
        norm.train()
    try:
        for batch in batches:
            inputs, _ = engine.batch(batch)
            with engine.autocast():
                network(*inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.train(mode)
    return True
