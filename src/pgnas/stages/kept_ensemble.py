"""The ensemble's networks as files in the run folder: made once, then used without the data and the model's code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from pgnas.architecture import Architecture
from pgnas.data import DataSet
from pgnas.errors import RunFolderError
from pgnas.progress import Progress
from pgnas.run_folder import RunFolder
from pgnas.stages import exporting
from pgnas.stages.context import Context
from pgnas.stages.ensemble import Weighted, draw_architectures, member_networks
from pgnas.stages.network_file import load

_FOLDER = "ensemble"
_INDEX = f"{_FOLDER}/members.json"


def kept_ensemble(
    path: Path, samples: int, *, progress: Progress, model: nn.Module | None = None, data: DataSet | None = None
) -> Iterator[Weighted]:
    """The first ``samples`` networks drawn from a run's posterior, on the CPU, equal ones merged; made if need be.

    Making them needs the run's data and model, those handed in if they were objects; a killed making is taken up again.

    Args:
        path: The run folder; candidates must have been ranked there.
        samples: M.
        progress: Where to report.
        model: The network, if the run was handed one as an object.
        data: The data, if the run was handed them as an object.

    Raises:
        RunFolderError: The run has not come so far, or is being written.
        ModelError: A network has an operation that a description cannot hold.
    """
    draws = _known_draws(path)
    if len(draws) < samples:
        _make(path, samples, progress, model, data)
        draws = _known_draws(path)
    for digest, weight in Counter(draws[:samples]).items():
        yield load(path / _member(digest)), float(weight)


def _known_draws(path: Path) -> list[str]:
    """Digests in the order in which they were drawn."""
    with RunFolder.open(path, writer=False) as folder:
        if not folder.file(_INDEX).exists():
            return []
        value: Any = folder.read_json(_INDEX, stage="sample")
    draws = value.get("draws") if isinstance(value, dict) else None
    if not isinstance(draws, list) or not all(isinstance(digest, str) and digest.isalnum() for digest in draws):
        raise RunFolderError(str(path / _INDEX), "must list the networks drawn", remedy="delete it to draw them again")
    return draws


def _member(digest: str) -> str:
    return f"{_FOLDER}/{digest}.safetensors"


def _make(path: Path, samples: int, progress: Progress, model: nn.Module | None, data: DataSet | None) -> None:
    with RunFolder.open(path) as folder:
        if not folder.stage_done("sample"):
            remedy = f"run pgnas sample {path} first"
            raise RunFolderError(str(path), "must have its candidates ranked", value="not yet", remedy=remedy)
        run = Context(folder, progress, model=model, data=data)
        progress.stage("ensemble")
        draws = draw_architectures(run.posterior, samples, seed=run.config.seed)
        wanted = {architecture.digest: architecture for architecture in draws}
        undone = [wanted[digest] for digest in wanted if not folder.file(_member(digest)).exists()]
        networks = member_networks(run, undone)
        for number, (architecture, network) in enumerate(zip(undone, networks, strict=True), start=1):
            _write(run, architecture, network)
            progress.advance(number, len(undone))
        folder.write_json(_INDEX, {"draws": [architecture.digest for architecture in draws]})


def _write(run: Context, architecture: Architecture, network: nn.Module) -> None:
    example, path = run.example.cpu(), run.folder.file(_member(architecture.digest))
    plain = exporting.plain_network(network.cpu().eval(), example)
    metadata = exporting.ExportMetadata(
        class_names=run.data.class_names,
        preprocessing=run.network_preprocessing.to_dict(),
        architecture=architecture.digest,
        **asdict(run.supernet.count(architecture)),
    )
    exporting.export_safetensors(plain, path, metadata, exporting.describe_network(plain, example, path))
