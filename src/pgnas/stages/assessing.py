"""Uncertainty of the prediction: the found network, the posterior's average and the full network, scored and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard

from torch import Tensor, nn

from pgnas.bayes import fit_temperature, tempered
from pgnas.bayes.predictive import entropy
from pgnas.data import Batches, Examples, load_data
from pgnas.errors import DataError
from pgnas.nn.copying import copied
from pgnas.stages.context import EVALUATION_BATCH, Context
from pgnas.stages.ensemble import SAMPLES, Gathered, Weighted, gather, posterior_networks
from pgnas.stages.scores import auroc, point_scores, reliability_bins, scores
from pgnas.stages.searching import trained_network
from pgnas.supernets import load_state

Facts = dict[str, Any]
PREDICTIONS_NAME, RELIABILITY_NAME = "predictions.safetensors", "reliability.json"
TEMPERATURES_NAME = "temperatures.json"
FOUND, ENSEMBLE, FULL = "found", "ensemble", "full"
_HELD_OUT, _TEST, _OTHER = "validation", "test", "other"


@dataclass(frozen=True)
class Source:
    """Networks whose predictions are averaged: a single one, or the members of the ensemble.

    Attributes:
        name: ``found``, ``ensemble`` or ``full``.
        networks: Makes them, one after another.
    """

    name: str
    networks: Callable[[], Iterable[Weighted]]


def sources(run: Context, samples: int) -> Iterator[Source]:
    """What predicts in a run: the found network, the ensemble, and the plain full network where it was trained.

    The found network is the one before any fine-tuning: what the run's result says of it stays true after that.
    """
    yield Source(FOUND, lambda: [(trained_network(run, tuned=False), 1.0)])
    yield Source(ENSEMBLE, lambda: posterior_networks(run, samples))
    if run.folder.stage_facts("baselines").get("full"):
        yield Source(FULL, lambda: [(_full_network(run), 1.0)])


def _full_network(run: Context) -> nn.Module:
    network = copied(run.built.module)
    tensors, _ = run.folder.load_tensors("baseline-full.safetensors")
    load_state(network, tensors, source="baseline-full.safetensors")
    return run.engine.place(network)


def assess(run: Context, *, samples: int = SAMPLES) -> tuple[Facts, Facts]:
    """Score what each source predicts on the test split, before and after a temperature fitted on validation.

    The temperature is fitted on the half of validation that no selection saw. Predictions, temperatures and the bins of
    reliability diagrams are written to the run folder.

    Returns:
        The scores, and the found network's plain :class:`pgnas.stages.training.Score` on the test split, as JSON.
    """
    kept: dict[str, Tensor] = {}
    plain = Facts()
    networks, bins, temperatures = Facts(), Facts(), Facts()
    for source in sources(run, samples):
        found, members = _predicted(run, source)
        temperature = fit_temperature(found[_HELD_OUT].log_probs, found[_HELD_OUT].labels)
        log_probs, labels = found[_TEST].log_probs, found[_TEST].labels
        calibrated = tempered(log_probs, temperature)
        networks[source.name] = _scored(log_probs, calibrated, labels, run.config.seed) | {"temperature": temperature}
        if source.name == FOUND:
            plain = asdict(found[_TEST].scores[0])
        if source.name == ENSEMBLE:
            networks[source.name]["members"] = {key: [member[key] for member in members] for key in members[0]}
        temperatures[source.name] = temperature
        bins[source.name] = {
            "bins": reliability_bins(log_probs, labels),
            "calibrated": reliability_bins(calibrated, labels),
        }
        kept |= _tensors(source.name, found)
    run.folder.save_tensors(PREDICTIONS_NAME, kept, {"format": "pgnas.predictions/1", "samples": str(samples)})
    run.folder.write_json(RELIABILITY_NAME, bins)
    run.folder.write_json(TEMPERATURES_NAME, temperatures)
    return {"samples": samples, "images": len(kept[f"{_TEST}.labels"]), "networks": networks}, plain


def are_temperatures(values: object) -> TypeGuard[dict[str, float]]:
    """Whether JSON values hold a temperature of the found network and one of the average."""
    if not isinstance(values, dict):
        return False
    found = [values.get(name) for name in (FOUND, ENSEMBLE)]
    return all(isinstance(value, float) and value > 0 for value in found)


def _predicted(run: Context, source: Source) -> tuple[dict[str, Gathered], list[dict[str, float]]]:
    """What a source predicts on both held-out sets, and the scores of each of its networks on the test split."""
    members: list[dict[str, float]] = []

    def score_each(name: str, log_probs: Tensor, labels: Tensor) -> None:
        if name == _TEST:
            members.append(point_scores(log_probs, labels))

    loaders = {_HELD_OUT: run.held_out(run.data.estimate), _TEST: run.held_out(run.data.test)}
    return gather(source.networks(), loaders, engine=run.engine, each=score_each), members


def _scored(log_probs: Tensor, calibrated: Tensor, labels: Tensor, seed: int) -> Facts:
    """Scores with intervals, and those after the temperature, which does not move the accuracy."""
    after = scores(calibrated, labels, seed=seed)
    return scores(log_probs, labels, seed=seed) | {"calibrated": {key: after[key] for key in ("nll", "brier", "ece")}}


def _tensors(source: str, found: dict[str, Gathered]) -> dict[str, Tensor]:
    """Predictions as they are kept: log-probabilities (N, K), labels (N,), of the ensemble mutual information (N,)."""
    kept: dict[str, Tensor] = {}
    for split, gathered in found.items():
        kept[f"{split}.labels"] = gathered.labels
        kept[f"{split}.{source}"] = gathered.log_probs.float()
        if source == ENSEMBLE:
            kept[f"{split}.{source}.mutual_information"] = gathered.uncertainty.epistemic.float()
    return kept


@dataclass(frozen=True, eq=False)
class OtherData:
    """Images of other data.

    Attributes:
        images: Their test split, shaped as the run's network reads images.
        fingerprint: Of the data.
    """

    images: Examples
    fingerprint: str


def tell_apart(run: Context, other: OtherData, *, samples: int) -> Facts:
    """How well each source's uncertainty tells other images from the run's test split, as :func:`assess` kept it.

    Returns:
        The number of images, the fingerprint, and by source the AUROC of each score: ``entropy`` of the prediction, and
        of the ensemble also the ``mutual_information`` of class and network.
    """
    kept, _ = run.folder.load_tensors(PREDICTIONS_NAME)
    facts: Facts = {"images": len(other.images), "fingerprint": other.fingerprint}
    for source in sources(run, samples):
        found = gather(source.networks(), {_OTHER: _batches(run, other.images)}, engine=run.engine)[_OTHER]
        inside = kept[f"{_TEST}.{source.name}"].double()
        facts[source.name] = {"entropy": auroc(entropy(inside), found.uncertainty.total)}
        if source.name == ENSEMBLE:
            information = kept[f"{_TEST}.{source.name}.mutual_information"]
            facts[source.name]["mutual_information"] = auroc(information, found.uncertainty.epistemic)
    return facts


def other_data(run: Context, spec: str) -> OtherData:
    """The test split of other data, as the run's network reads images.

    Raises:
        DataError: The data cannot be read, or are of another shape.
    """
    shape = run.network_preprocessing
    square = shape.depth is None and shape.height == shape.width
    data = load_data(spec, image_size=shape.height if square else None, augment="off")
    split = data.test
    if len(split.shape) == len(shape.shape) and split.shape[0] == 1 < shape.channels:
        split = split.widened(shape.channels)
    if split.shape != shape.shape:
        found, wanted = ("x".join(map(str, size)) for size in (split.shape, shape.shape))
        remedy = "give data of as many channels and dimensions"
        raise DataError(f"--ood {spec}", f"must give images of {wanted}, as the run's", value=found, remedy=remedy)
    return OtherData(split, data.fingerprint)


def _batches(run: Context, split: Examples) -> Batches:
    return Batches(split, run.network_preprocessing, EVALUATION_BATCH, device=run.engine.device)
