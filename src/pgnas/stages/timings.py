"""What a network's operations take on this device: measured when first asked for, and kept."""

from __future__ import annotations

import json
from pathlib import Path

from pgnas.errors import FileError, RunFolderError
from pgnas.nn import Supernet
from pgnas.nn.device_costs import DeviceCosts
from pgnas.nn.stopwatch import measure_device
from pgnas.run_folder import RunFolder

TRAINING_BATCH = 8
"""Examples a batch for timing a training step; the ratio of an operation's cost to another's varies little with it."""


class Timings:
    """Timings of one supernet's operations, kept in memory.

    Args:
        latency_batch: Examples a batch whose latency matters.
    """

    def __init__(self, *, latency_batch: int = 1) -> None:
        self._batches = {False: latency_batch, True: TRAINING_BATCH}
        self._known: dict[bool, DeviceCosts] = {}

    def of(self, supernet: Supernet, *, training: bool) -> DeviceCosts:
        """The costs of a forward pass, or in ``training`` of a forward and a backward pass."""
        if training not in self._known:
            self._known[training] = self._find(supernet, training)
        return self._known[training]

    def _find(self, supernet: Supernet, training: bool) -> DeviceCosts:
        return measure_device(supernet.graph, batch=self._batches[training], training=training)


class FolderTimings(Timings):
    """Timings kept in a run's folder, so that a resumed run decides as before.

    Args:
        folder: The run's folder, open for writing.
        source: The folder of another run whose timings are used, if any.
        latency_batch: Examples a batch whose latency matters.
    """

    def __init__(self, folder: RunFolder, *, source: str | None, latency_batch: int) -> None:
        super().__init__(latency_batch=latency_batch)
        self._folder, self._source = folder, source

    def _find(self, supernet: Supernet, training: bool) -> DeviceCosts:
        name = "device_costs_training.json" if training else "device_costs.json"
        path = self._folder.file(name)
        if not path.exists():
            costs = super()._find(supernet, training) if self._source is None else None
            values = costs.to_json() if costs is not None else _read(Path(self._source or "") / name)
            DeviceCosts.from_json(values, subject=f"{self._source}/{name}", graph=supernet.graph)
            self._folder.write_json(name, values)
        return DeviceCosts.from_json(_read(path), subject=str(path), graph=supernet.graph)


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        remedy = "name the folder of a run that measured this network, or leave --device-costs out"
        raise RunFolderError(str(path), "must be there to be read", value=error.strerror, remedy=remedy) from error
    except ValueError as error:
        raise FileError(str(path), "must be JSON", value=error, remedy="use a file that a run wrote") from error
