"""The stages after training: export, evaluate, report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pgnas.errors import ExportError, ModelError
from pgnas.run_folder import RunFolder
from pgnas.stages import exporting, reporting
from pgnas.stages.assessing import assess
from pgnas.stages.choice import choice, interval_of, predicted_interval, sentence
from pgnas.stages.context import Context
from pgnas.stages.reporting import REPORT_NAME
from pgnas.stages.result import read_result
from pgnas.stages.searching import trained_network
from pgnas.stages.store import FolderStore
from pgnas.stages.training import Score

Facts = dict[str, Any]
FORMATS = {
    exporting.PT2_NAME: exporting.export_pt2,
    exporting.ONNX_NAME: exporting.export_onnx,
    exporting.SOURCE_NAME: exporting.export_source,
}


def export(run: Context, store: FolderStore) -> Facts:
    """Write model.safetensors, network.json, model.pt2, model.onnx and model.py, each checked to predict the same.

    A format that cannot hold this network is noted and left out; the weights are always written.
    """
    example = run.example.cpu()
    network = exporting.plain_network(trained_network(run).cpu().eval(), example)
    metadata = exporting.ExportMetadata(
        class_names=run.data.class_names,
        preprocessing=run.network_preprocessing.to_dict(),
        architecture=run.architecture.digest,
        settings={key: value for key, value in run.config.given().items() if key != "out"},  # a place on this machine
        params=run.found.params,
        macs=run.found.macs,
    )
    left_out: dict[str, str] = {}

    @contextlib.contextmanager
    def noted(name: str) -> Iterator[None]:
        try:
            yield
        except (ModelError, ExportError) as error:
            left_out[name] = str(error)
            run.progress.note(f"export: {name} left out: {error}")

    description = None
    with noted(exporting.NETWORK_NAME):
        path = run.folder.file(exporting.NETWORK_NAME)
        description = exporting.describe_network(network, example, path)
        exporting.export_description(path, description)
    exporting.export_safetensors(network, run.folder.file(exporting.WEIGHTS_NAME), metadata, description)
    for name, write in FORMATS.items():
        with noted(name):
            write(network, example, run.folder.file(name), metadata)
    return {"left_out": left_out}


def evaluate(run: Context, store: FolderStore) -> Facts:
    """Read the test split, once by each network, and write result.json."""
    supernet = run.score(run.posterior, run.data.test)
    assessed, told = run.processes.from_first(lambda: assess(run))
    test = Score(**told)
    facts = {"supernet_test": supernet.metric, "found_test": test.metric, "test_images": test.count}
    result = partial_result(run.folder) | {"full": asdict(run.full), "notes": _notes(run)}
    result["supernet"] = {**result["supernet"], "test_accuracy": supernet.metric}
    result["found"] = {**result["found"], "test_accuracy": test.metric, "test_loss": test.loss}
    result["found"] |= {"test_images": test.count, "digest": run.architecture.digest}
    result["cap"] = {"macs": None, "params": None, **run.caps}
    sampled = run.folder.stage_facts("sample")
    if "latency" in run.caps:
        result["cap"]["latency_ms"] = 1e3 * result["cap"].pop("latency")
        result["found"]["latency_ms"] = 1e3 * float(str(sampled["latency"]))
        result["full"]["latency_ms"] = 1e3 * float(str(sampled["full_latency"]))
    result["found"] |= _intervals(result["found"], len(run.data.estimate))
    result["choice"] = run.processes.from_first(lambda: choice(run))
    result["uncertainty"] = assessed
    result["sentence"] = sentence(result)
    run.folder.write_json("result.json", result)
    return facts


def _intervals(found: Facts, held_out: int) -> Facts:
    """95 % intervals: of the accuracy, from either held-out set, and for the test split, told from validation alone."""
    test_images = found["test_images"]
    return {
        "val_images": held_out,
        "val_interval": interval_of(found["val_accuracy"], held_out),
        "test_interval": interval_of(found["test_accuracy"], test_images),
        "predicted_test_interval": predicted_interval(found["val_accuracy"], held_out, test_images),
    }


def partial_result(folder: RunFolder) -> dict[str, Any]:
    """The fields of result.json that the stages done so far give."""
    search, sample, extract, train = (folder.stage_facts(name) for name in ("search", "sample", "extract", "train"))
    joint = folder.stage_facts("joint")
    values: dict[str, Any] = {}
    if search:
        values["supernet"] = {"val_accuracy": search.get("val_accuracy"), "epochs": search.get("epochs")}
        if folder.config.sheds or folder.config.budget is not None:
            values["supernet"] |= {key: search[key] for key in ("spent", "sheddings", "left") if key in search}
    if extract:
        values["found"] = {"params": extract["params"], "macs": extract["macs"]}
        values["decision"] = {key: extract[key] for key in ("val_before_calibration", "val_frozen")}
    if train:
        epochs = int(str(train["epochs"])) + (float(str(joint["passes"])) if "passes" in joint else 0)
        values["found"] |= {"val_accuracy": train["val_accuracy"], "epochs": epochs}
    if sample:
        values["candidates"] = {key: value for key, value in sample.items() if key != "digest"}
    if joint:
        values["joint"] = joint
    baselines = folder.stage_facts("baselines")
    if baselines:
        values["baselines"] = baselines
    names = ("search", "sample", "extract", *(["joint"] if joint else []), "train", "export")
    values["seconds"] = {name: round(folder.stage_seconds(name), 3) for name in names}
    values["seed"] = folder.config.seed
    return values


def _notes(run: Context) -> list[str]:
    notes = [*run.data_notes, *run.built.notes]
    left_out = run.folder.stage_facts("export").get("left_out")
    if isinstance(left_out, dict):
        notes += [f"{name} was left out: {reason}" for name, reason in left_out.items()]
    report = run.supernet.report
    if report.barriers:
        notes.append(f"{len(report.barriers)} operations could not be shrunk; report.html names them")
    return notes


def report(run: Context, store: FolderStore) -> Facts:
    """Write report.html from what the other stages wrote."""
    result = read_result(run.folder)
    run.folder.write_text(REPORT_NAME, reporting.render(run.folder, result))
    return {}
