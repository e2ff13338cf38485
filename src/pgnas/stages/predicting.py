"""``pgnas predict RUN IMAGES``: classes by the found network and by the posterior's average, and how sure they are."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgnas.bayes import Predictive, Uncertainty, tempered
from pgnas.bayes.predictive import entropy
from pgnas.data import DataSet, Preprocessing, image_files, read_images
from pgnas.data.inspection import shown
from pgnas.errors import FileError, RunFolderError
from pgnas.processes import Processes
from pgnas.progress import Progress, SilentReporter
from pgnas.run_folder import RunFolder
from pgnas.run_folder.storage import to_json, write_bytes
from pgnas.run_folder.tensors import load_tensors
from pgnas.stages.assessing import ENSEMBLE, FOUND, TEMPERATURES_NAME, are_temperatures
from pgnas.stages.context import EVALUATION_BATCH
from pgnas.stages.engine import Engine, make_engine
from pgnas.stages.ensemble import SAMPLES, Weighted, predict, require_samples
from pgnas.stages.export_metadata import ExportMetadata
from pgnas.stages.kept_ensemble import kept_ensemble
from pgnas.stages.network_file import WEIGHTS_NAME, load
from pgnas.stages.result import RunResult

_MEASURES = ("confidence", "entropy", "aleatoric", "epistemic")


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a network, or an average of networks, predicts of N images.

    Attributes:
        probabilities: (N, K) float64.
        entropy: (N,), in nats.
        aleatoric: The part that remains if the network is known, (N,); None after a temperature, which belongs to the
            average and not to its parts.
        epistemic: The mutual information of class and network, (N,); 0 for a single network; None likewise.
    """

    probabilities: Tensor
    entropy: Tensor
    aleatoric: Tensor | None
    epistemic: Tensor | None


@dataclass(frozen=True, eq=False)
class ImagePredictions:
    """What a run's networks predict of some images.

    Attributes:
        files: N paths.
        class_names: K names.
        sources: ``found``, and with samples ``ensemble``, to what they predict.
        samples: M; 0: without the ensemble.
        calibrated: Whether temperatures were applied.
    """

    files: tuple[str, ...]
    class_names: tuple[str, ...]
    sources: dict[str, Predicted]
    samples: int
    calibrated: bool

    def rows(self) -> list[dict[str, Any]]:
        """One row an image and source: file, network, class, confidence, entropies, and the classes' probabilities."""
        return [self._row(number, name) for number in range(len(self.files)) for name in self.sources]

    def _row(self, number: int, name: str) -> dict[str, Any]:
        predicted = self.sources[name]
        probabilities = predicted.probabilities[number].tolist()
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        parts = (predicted.entropy, predicted.aleatoric, predicted.epistemic)
        values = (probabilities[best], *(None if part is None else float(part[number]) for part in parts))
        return {
            "file": self.files[number],
            "network": name,
            "class": self.class_names[best],
            **dict(zip(_MEASURES, values, strict=True)),
            "probabilities": probabilities,
        }

    def to_json(self) -> str:
        """All of it as JSON."""
        settings = {"classes": self.class_names, "samples": self.samples, "calibrated": self.calibrated}
        return to_json({**settings, "predictions": self.rows()}, indent=1) + "\n"

    def to_csv(self) -> str:
        """A line an image and source; what is undefined is empty; the classes' probabilities come last."""
        text = io.StringIO()
        names = [f"p({name})" for name in self.class_names]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "network", "class", *_MEASURES, *names])
        for row in self.rows():
            values = ["" if row[name] is None else row[name] for name in _MEASURES]
            writer.writerow([row["file"], row["network"], row["class"], *values, *row["probabilities"]])
        return text.getvalue()

    def write(self, *, json: str | Path | None = None, csv: str | Path | None = None) -> None:
        """Write what :meth:`to_json` and :meth:`to_csv` give.

        Raises:
            StorageError: The disk refused a write.
        """
        texts: tuple[tuple[str | Path | None, Callable[[], str]], ...] = ((json, self.to_json), (csv, self.to_csv))
        for path, text in texts:
            if path is not None:
                write_bytes(Path(path), text().encode("utf-8", "replace"))


def predict_images(
    path: str | Path | RunResult,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    samples: int = SAMPLES,
    calibrated: bool = False,
    progress: Progress | None = None,
    model: nn.Module | None = None,
    data: DataSet | None = None,
) -> ImagePredictions:
    """What the found network of a run, and the average of networks drawn from its posterior, predict of images.

    The networks drawn are made when they are first asked for, which needs the run's data and model, and kept in the run
    folder; the rest needs the folder alone.

    Args:
        path: The run folder, or the result of the run; its network must have been exported.
        images: An image file or a folder of them, or several; they are resized as the run's were.
        samples: M; 0: the found network alone.
        calibrated: Apply the temperatures that ``pgnas evaluate`` fitted on validation.
        progress: Where to report; nowhere by default.
        model: The network, if the run was handed one as an object; what is drawn is made of it.
        data: The data, if the run was handed them as an object.

    Raises:
        InputError: There is no such run or image, or an image is broken.
    """
    path, progress = path.path if isinstance(path, RunResult) else Path(path), progress or SilentReporter()
    require_samples(samples, least=0)
    temperatures, cropped = _settings(path, calibrated)
    network = load(path)
    metadata = ExportMetadata.from_strings(load_tensors(path / WEIGHTS_NAME)[1], subject=str(path / WEIGHTS_NAME))
    preprocessing = Preprocessing.from_dict(dict(metadata.preprocessing))
    files = image_files(images)
    pixels = read_images(files, preprocessing, cropped=cropped)
    loader = _Loader(pixels, preprocessing)
    engine = make_engine("auto", "fp32", processes=Processes())
    made = {FOUND: _average([(network, 1.0)], loader, engine)}
    if samples:
        made[ENSEMBLE] = _average(
            kept_ensemble(path, samples, progress=progress, model=model, data=data), loader, engine
        )
    sources = {name: _predicted(found, temperatures.get(name)) for name, found in made.items()}
    return ImagePredictions(tuple(map(shown, files)), metadata.class_names, sources, samples, calibrated)


class _Loader:
    """Batches (images, zeros), as loaders of labelled images give them."""

    def __init__(self, pixels: Tensor, preprocessing: Preprocessing) -> None:
        self._pixels, self._preprocessing = pixels, preprocessing

    def __iter__(self) -> Any:
        for part in torch.split(self._pixels, EVALUATION_BATCH):
            yield self._preprocessing.normalise(part), torch.zeros(len(part), dtype=torch.long)


def _average(networks: Iterable[Weighted], loader: _Loader, engine: Engine) -> Predictive:
    found = Predictive()
    for network, weight in networks:
        found.add(predict(engine.place(network), loader, engine=engine).log_probs, weight=weight)
    return found


def _predicted(found: Predictive, temperature: float | None) -> Predicted:
    if temperature is None:
        parts: Uncertainty = found.uncertainty()
        return Predicted(found.log_probs().exp(), parts.total, parts.aleatoric, parts.epistemic)
    log_probs = tempered(found.log_probs(), temperature)
    return Predicted(log_probs.exp(), entropy(log_probs), None, None)


def _settings(path: Path, calibrated: bool) -> tuple[dict[str, float], bool]:
    """The temperatures, none unless asked for, and whether images are cropped.

    Raises:
        RunFolderError: There is no run, or temperatures are asked for and there are none, or none of this network.
        FileError: The file of temperatures is damaged.
    """
    with RunFolder.open(path, writer=False) as folder:
        cropped = folder.stage_facts("data").get("cropped") is True
        if not calibrated:
            return {}, cropped
        if folder.stage_done("finetune"):
            rule, remedy = "has temperatures of the network before fine-tuning alone", "leave out --calibrated"
            raise RunFolderError(str(path), rule, remedy=remedy)
        folder.require_stage("evaluate")
        there = folder.file(TEMPERATURES_NAME).is_file()
        values = folder.read_json(TEMPERATURES_NAME, stage="evaluate") if there else None
    if not are_temperatures(values):
        rule, remedy = "must hold a temperature of each network", f"run pgnas evaluate {path} --samples {SAMPLES} again"
        raise FileError(str(path / TEMPERATURES_NAME), rule, remedy=remedy)
    return values, cropped
