"""What a network's operations take on this device: measured when first asked for, and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.operations import slice_tensors
from torch import nn

from pgnas.errors import FileError, RunFolderError
from pgnas.nn import Supernet
from pgnas.nn.copying import copied
from pgnas.nn.device_costs import DeviceCosts
from pgnas.nn.stopwatch import measure_device
from pgnas.nn.timing import seconds
from pgnas.processes import Processes
from pgnas.run_folder import RunFolder
from pgnas.stages.engine import Engine
from pgnas.stages.training import Loss, parts_of

TRAINING_BATCH = 8
"""Examples a batch for timing a training step; the ratio of an operation's cost to another's varies little with it."""


class Timings:
    """Timings of one supernet's operations, kept in memory.

    Args:
        latency_batch: Examples a batch whose latency matters.
        processes: Those that use the timings; the first measures for all. None: this one alone.
    """

    def __init__(self, *, latency_batch: int = 1, processes: Processes | None = None) -> None:
        self._processes = processes or Processes()
        self._batches = {False: latency_batch, True: TRAINING_BATCH}
        self._known: dict[bool, DeviceCosts] = {}

    def of(self, supernet: Supernet, *, training: bool) -> DeviceCosts:
        """The costs of a forward pass, or in ``training`` of a forward and a backward pass."""
        if training not in self._known:
            self._known[training] = self._find(supernet, training)
        return self._known[training]

    def _find(self, supernet: Supernet, training: bool) -> DeviceCosts:
        values = self._processes.from_first(lambda: self._values(supernet, training))
        return DeviceCosts.from_json(values, subject=self._name(training), graph=supernet.graph)

    def _values(self, supernet: Supernet, training: bool) -> object:
        return measure_device(supernet.graph, batch=self._batches[training], training=training).to_json()

    def _name(self, training: bool) -> str:
        return "device_costs_training.json" if training else "device_costs.json"


class FolderTimings(Timings):
    """Timings kept in a run's folder, so that a resumed run decides as before.

    Args:
        folder: The run's folder, open for writing.
        source: The folder of another run whose timings are used, if any.
        latency_batch: Examples a batch whose latency matters.
        processes: Those that use the timings; None: this one alone.
    """

    def __init__(
        self, folder: RunFolder, *, source: str | None, latency_batch: int, processes: Processes | None = None
    ) -> None:
        super().__init__(latency_batch=latency_batch, processes=processes)
        self._folder, self._source = folder, source

    def _values(self, supernet: Supernet, training: bool) -> object:
        name = self._name(training)
        path = self._folder.file(name)
        if not path.exists():
            if self._source is None:
                values = super()._values(supernet, training)
            else:
                values = _read(Path(self._source) / name)
                DeviceCosts.from_json(values, subject=f"{self._source}/{name}", graph=supernet.graph)
            self._folder.write_json(name, values)
        return _read(path)


def step_seconds(network: nn.Module, batch: Any, engine: Engine, loss: Loss) -> float:
    """The median seconds of a forward and a backward pass of a network in training, which is left as it was.

    Args:
        network: The network, on the engine's device.
        batch: A training batch.
        engine: Where to compute.
        loss: Mean loss of a batch.
    """
    trained = copied(network).train()
    inputs, targets = engine.batch(batch)

    parts = [slice_tensors((inputs, targets), rows) for rows in parts_of(len(inputs[0]), engine.accumulate)]

    def step() -> None:
        for part, wanted in parts:
            with engine.autocast():
                value = loss(trained(*part), wanted)
            torch.autograd.backward(value)

    with torch.random.fork_rng():
        return seconds(step, at_least=1.0)


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        remedy = "name the folder of a run that measured this network, or leave --device-costs out"
        raise RunFolderError(str(path), "must be there to be read", value=error.strerror, remedy=remedy) from error
    except (ValueError, RecursionError) as error:
        raise FileError(str(path), "must be JSON", value=error, remedy="use a file that a run wrote") from error
