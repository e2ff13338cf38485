"""What is trained and how it is scored: phases, their steps, stores of what they measure, evaluation."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from accelerate.utils.operations import slice_tensors
from torch import Tensor, nn

from pgnas.data import Batches
from pgnas.errors import ConfigError
from pgnas.nn.modes import evaluation
from pgnas.stages.engine import Engine
from pgnas.stages.schedule import Schedule
from pgnas.supernets import ramp_drop_path

Loss = Callable[[Any, Any], Tensor]
"""Mean loss in nats of a batch: (outputs, targets) to a scalar."""
Metric = Callable[[Any, Any], Tensor]
"""Scores of a batch, higher is better: (outputs, targets) to one score an example (B,), or their mean."""
Loader = Iterable[Any]
"""Batches (inputs, ..., targets) with a length; ``set_epoch`` is called before each epoch if it has one."""


DIVERGED_REMEDY = "the last good checkpoint is kept; begin another run with a lower --lr"
Judge = Callable[[nn.Module, Tensor], tuple[Tensor, float]]
"""Of a network and held-out examples (B,), by number: a score in [0, 1] for each (B,), and the mean loss in nats."""


class Store(Protocol):
    """Where a phase keeps its checkpoints and measurements."""

    def load(self, phase: str) -> dict[str, Any] | None:
        """The newest checkpoint of a phase."""

    def save(self, phase: str, state: Mapping[str, Any], step: int) -> None:
        """Keep a checkpoint, made after so many optimiser steps."""

    def due(self) -> bool:
        """Whether so much time has passed since the last checkpoint that one should be made amid an epoch."""

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

    def save(self, phase: str, state: Mapping[str, Any], step: int) -> None:
        """Nothing is kept."""

    def due(self) -> bool:
        """Nothing is kept."""
        return False

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

    @cached_property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The scaler of the losses, one for all optimisers; None unless the number format is fp16."""
        return self.engine.new_scaler()

    @abstractmethod
    def loss(self, inputs: tuple[Tensor, ...], targets: Any, step: int, *, noise: Tensor | None = None) -> Tensor:
        """The loss of one batch, in nats an example.

        Args:
            inputs: The network's inputs, batch first.
            targets: What the loss compares with.
            step: Number of the optimiser step.
            noise: That of :meth:`noise` for these examples; drawn if absent.
        """

    def noise(self, examples: int) -> Tensor | None:
        """What a step draws for each of this process's examples, (examples, ...); nothing by default."""
        return None

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """All optimisers by name."""
        return {"weights": self.weights}

    def prepare_step(self, step: int) -> None:
        """Set what depends on the place in the run alone: the learning rate, and the drop-path probabilities."""
        place = self.place(step)
        for group in self.weights.param_groups:
            group["lr"] = self.schedule.at(place)
        ramp_drop_path(self.network, (place + 1) / self.schedule.steps)

    def place(self, step: int) -> float:
        """Where in the schedule an optimiser step of the run lies: there, unless a phase has a budget."""
        return step

    def stop(self, planned: int) -> int:
        """Epochs of the run after which the phase ends; as planned, unless a phase has a budget."""
        return planned

    def step(self, inputs: tuple[Tensor, ...], targets: Any, step: int) -> Tensor:
        """One step of every optimiser; the loss before it, a scalar without gradient."""
        return self.update(self.backward(inputs, targets, step), step)

    def backward(self, inputs: tuple[Tensor, ...], targets: Any, step: int) -> Tensor:
        """The gradients of this process's share of a batch, in as many parts as the engine says; the mean loss."""
        for optimizer in self.optimizers().values():
            optimizer.zero_grad(set_to_none=True)
        count = len(inputs[0])
        noise = self.noise(count)
        self.engine.own_randomness()
        if self.engine.accumulate == 1:
            loss = self.loss(inputs, targets, step, noise=noise)
            self._differentiate(loss)
            return loss.detach()
        total = torch.zeros((), device=self.engine.device)
        for rows in parts_of(count, self.engine.accumulate):
            part, wanted, drawn = slice_tensors((inputs, targets, noise), rows)
            loss = self.loss(part, wanted, step, noise=drawn) * ((rows.stop - rows.start) / count)
            self._differentiate(loss)
            total += loss.detach()
        return total

    def update(self, loss: Tensor, step: int) -> Tensor:
        """One step of every optimiser by the gradients of all processes; the mean loss of all."""
        parameters = [p for o in self.optimizers().values() for group in o.param_groups for p in group["params"]]
        loss = self.engine.average_gradients(loss, parameters)
        groups = {optimizer: optimizer.param_groups for optimizer in self.optimizers().values()}
        moved = [o for o, found in groups.items() if any(p.grad is not None for g in found for p in g["params"])]
        for optimizer in moved:
            if self.scaler is None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)
        if self.scaler is not None and moved:
            self.scaler.update()
        self.finish_step(step)
        return loss

    def _differentiate(self, loss: Tensor) -> None:
        torch.autograd.backward(loss if self.scaler is None else self.scaler.scale(loss))

    def finish_step(self, step: int) -> None:
        """What follows the optimisers' step; nothing, unless a phase says otherwise."""
        return

    def finish_epoch(self, epoch: int) -> None:
        """What follows an epoch, with ``epoch`` of the run behind; nothing, unless a phase says otherwise."""
        return

    def measure(self) -> dict[str, Any]:
        """Measurements for the epoch's row; those that :class:`pgnas.progress.Progress` knows are shown."""
        return {}

    def state(self) -> dict[str, Any]:
        """Everything the next epoch depends on."""
        return {
            "network": dict(self.network.state_dict()),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers().items()},
            **self.scaler_state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        self.network.load_state_dict(state["network"])
        for name, optimizer in self.optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.load_scaler(state)

    def scaler_state(self) -> dict[str, Any]:
        """That of the scaler, as a part of :meth:`state`; nothing without one."""
        return {} if self.scaler is None else {"scaler": self.scaler.state_dict()}

    def load_scaler(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`scaler_state`."""
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])


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


def parts_of(count: int, parts: int) -> list[slice]:
    """``count`` rows in at most so many slices of nearly equal size."""
    edges = [round(part * count / parts) for part in range(parts + 1)]
    return [slice(low, high) for low, high in itertools.pairwise(edges) if low < high]


@torch.no_grad()
def evaluate(
    network: nn.Module,
    loader: Loader,
    *,
    engine: Engine,
    loss: Loss,
    metric: Metric = accuracy,
    each: Callable[[Any, Any], None] = lambda outputs, targets: None,
) -> Score:
    """Score a network on a loader, in eval mode; its mode is left as it was.

    Several processes score whole batches in turn, and add up in their order: the score is that of one process to the
    bit.

    Args:
        network: The network.
        loader: Batches.
        engine: Where.
        loss: As in training.
        metric: What the score is.
        each: Is shown the outputs and targets of every batch that this process scores, on its device.
    """

    def judged(outputs: Any, targets: Any) -> Tensor:
        each(outputs, targets)
        return metric(outputs, targets)

    turn, turns = engine.processes.turn
    rows: list[tuple[float, float, int]] = []
    with evaluation(network), engine.processes.together():
        batches = _every(loader, turns, first=turn)
        for scores, batch_loss, count in _judged(network, batches, engine=engine, loss=loss, metric=judged):
            rows.append((float(scores.double().mean()), batch_loss, count))
    told = engine.processes.gather(rows)
    metric_sum, loss_sum, count = 0.0, 0.0, 0
    for round_ in itertools.zip_longest(*told):
        for row in round_:
            if row is not None:
                metric_sum, loss_sum, count = metric_sum + row[0] * row[2], loss_sum + row[1] * row[2], count + row[2]
    return Score(metric_sum / max(1, count), loss_sum / max(1, count), count)


@torch.no_grad()
def judge_examples(
    network: nn.Module, loader: Loader, *, engine: Engine, loss: Loss, metric: Metric = accuracy
) -> tuple[Tensor, float]:
    """Score a network on each example of a loader, in eval mode, in this process alone.

    Returns:
        The scores, (N,) on the CPU, and the mean loss.

    Raises:
        ConfigError: The metric does not give a score for each example.
    """
    scores, losses = [], 0.0
    with evaluation(network):
        for found, batch_loss, count in _judged(network, loader, engine=engine, loss=loss, metric=metric):
            if found.shape != (count,):
                rule = "needs a metric with a score for each example"
                raise ConfigError("--ranking", rule, value=tuple(found.shape), remedy="rank exhaustively")
            scores.append(found.float().cpu())
            losses += batch_loss * count
    judged = torch.cat(scores)
    return judged, losses / len(judged)


def _judged(
    network: nn.Module, batches: Iterable[Any], *, engine: Engine, loss: Loss, metric: Metric
) -> Iterator[tuple[Tensor, float, int]]:
    """Of each batch what the metric gives, the mean loss and the number of examples."""
    for batch in batches:
        inputs, targets = engine.batch(batch)
        with engine.autocast():
            outputs = network(*inputs)
            batch_loss = loss(outputs, targets)
        yield metric(outputs, targets), float(batch_loss), len(inputs[0])


def _every(loader: Loader, stride: int, *, first: int) -> Iterator[Any]:
    """The batches ``first``, ``first + stride``, ... of a loader."""
    if isinstance(loader, Batches):
        return loader.every(stride, first=first)
    return itertools.islice(iter(loader), first, None, stride)


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
    momenta = [norm.momentum for norm in norms]
    with evaluation(network):
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
    return True
