"""``pgnas front RUN``: networks for several costs from one search, whose posterior is re-targeted to each.

Every point is a run folder of its own in the run's ``front/``, whose search is the run's: ranked, extracted, trained
for a few epochs, exported, evaluated. So a killed front goes on where it was.
"""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pgnas.amounts import Amount
from pgnas.architecture import Architecture
from pgnas.config import RunConfig
from pgnas.data import DataSet
from pgnas.errors import ConfigError, RunFolderError
from pgnas.nn import Supernet, extract_small
from pgnas.nn.timing import latency
from pgnas.processes import join
from pgnas.progress import Progress, SilentReporter
from pgnas.report.front import front_figure, undominated
from pgnas.run_folder import RunFolder, SharedFolder
from pgnas.run_folder.tensors import load_tensors
from pgnas.stages import pipeline
from pgnas.stages.context import Context
from pgnas.stages.latency import example_batch
from pgnas.stages.result import RunResult
from pgnas.stages.schedule import cosine_schedule
from pgnas.stages.searching import describe_supernet, trained_network

Cost = Literal["macs", "params"]
Start = Literal["larger", "search"]
FOLDER = "front"
MOST_LR = 1_000.0
"""The most that ``lr`` of a run's settings may be."""
_COLUMNS = (
    "cap", "macs", "params", "latency", "full_latency", "val_accuracy", "test_accuracy", "val_untrained", "dominated",
    "expected_cost", "spent", "folder",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FrontSettings:
    """Which networks are wanted.

    Attributes:
        caps: Their caps, each a share of the full network's cost (``"40%"``) or a count (``"2M"``).
        points: Instead of ``caps``: so many, evenly spaced between nothing and the full network.
        epochs: Epochs that each network is trained after it was chosen.
        lr: Learning rate at the beginning of these, from where it falls to 0.
        cost: What is capped: multiply-adds or parameters.
        start: Weights with which each network begins: those of the next larger one, trained, or those of the search.
    """

    caps: tuple[str, ...] = ()
    points: int | None = None
    epochs: int = 2
    lr: float = 0.03
    cost: Cost = "macs"
    start: Start = "larger"

    def __post_init__(self) -> None:
        if bool(self.caps) == (self.points is not None):
            value = "both" if self.caps else "neither"
            raise ConfigError("--caps", "or --points must be given", value=value, remedy="give one, as --caps 20%,40%")
        for flag, count in (("--points", self.points), ("--epochs", self.epochs)):
            if count is not None and not 0 <= count - (flag == "--points") <= 1_000:
                raise ConfigError(flag, "must lie between 0 and 1000", value=count, remedy="choose a number inside")
        if not 0 < self.lr <= 100:
            raise ConfigError("--lr", "must lie in (0, 100]", value=self.lr, remedy="choose a value inside")
        if self.cost not in ("macs", "params"):
            raise ConfigError("--cost", "must be one of macs, params", value=repr(self.cost), remedy="choose one")
        if self.start not in ("larger", "search"):
            raise ConfigError("--start", "must be one of larger, search", value=repr(self.start), remedy="choose one")
        for cap in self.caps:
            Amount.parse(cap, subject="--caps")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The caps as text."""
        if self.points is None:
            return tuple(dict.fromkeys(cap.strip() for cap in self.caps))
        return tuple(f"{100 * k / (self.points + 1):.4g}%" for k in range(1, self.points + 1))


@dataclass(frozen=True)
class FrontResult:
    """A front.

    Attributes:
        path: The folder with ``front.json``, ``front.csv``, ``front.svg`` and a run folder a point.
        points: The rows of ``front.json``, cheapest first.
    """

    path: Path
    points: tuple[Mapping[str, Any], ...]

    def summary(self) -> list[str]:
        """A line a point."""
        lines = []
        for point in self.points:
            scores = f"validation {point['val_accuracy']:.4f} test {point['test_accuracy']:.4f}"
            size = f"{point['params']:,} parameters, {point['macs']:,} multiply-adds"
            speed = f"{point['latency'] / point['full_latency']:.0%} of the full network's latency"
            end = " (dominated)" if point["dominated"] else ""
            lines.append(f"cap {point['cap']}: {size}, {speed} {scores}{end}")
        return [*lines, f"front: {self.path}"]


def front(
    path: str | Path,
    settings: FrontSettings,
    *,
    progress: Progress | None = None,
    model: nn.Module | None = None,
    data: DataSet | None = None,
) -> FrontResult:
    """Networks for several caps from the posterior of a run; resumed if begun.

    Args:
        path: The run folder; its search must be done.
        settings: Which networks.
        progress: Where to report; nowhere by default.
        model: The network, if the run was handed one as an object.
        data: The data, if the run was handed them as an object.

    Raises:
        RunFolderError: The search is not done, or a point was made with other settings.
        ConfigError: A cap is out of reach.
    """
    processes, progress = join(), progress or SilentReporter()
    with SharedFolder.share(processes, lambda: RunFolder.open(path)) as folder:
        folder.require_stage("search")
        run = Context(folder, progress, model=model, data=data, processes=processes)
        targets = _targets(run, settings)
        weights = copy.deepcopy(run.posterior)
        rows: list[dict[str, Any]] = []
        for cap, target in reversed(targets.items()):
            config = _point_config(run, settings, cap)
            facts = _begin(run, config, weights, settings, target)
            progress.note(f"front: {cap} of {settings.cost}")
            result = pipeline.run(config, progress=progress, model=model, data=run.data)
            rows.insert(0, _row(run, cap, facts, result) | _latency(run, result.path, model))
            if settings.start == "larger":
                _learn_from(weights, result.path)
        points = [
            {**row, "dominated": not best} for row, best in zip(rows, undominated(rows, settings.cost), strict=True)
        ]
        _write(folder, points, settings)
        return FrontResult(folder.path / FOLDER, tuple(points))


def _targets(run: Context, settings: FrontSettings) -> dict[str, float]:
    """Each cap and its share of the full network's cost, cheapest first."""
    full = run.full.macs if settings.cost == "macs" else run.full.params
    shares = {cap: Amount.parse(cap, subject="--caps").of(full) / full for cap in settings.wanted}
    targets = dict(sorted(shares.items(), key=lambda item: item[1]))
    for cap, share in targets.items():
        if share > 1 or share * full < 1:
            rule = f"must lie between 1 and the network's {full:,}"
            raise ConfigError("--caps", rule, value=cap, remedy="change the cap")
        copy.deepcopy(run.posterior).retarget_(settings.cost, share)  # refused before any network is trained
    return targets


@torch.no_grad()
def _learn_from(weights: Supernet, path: Path) -> None:
    """Take over into a supernet what a point's network learned: weights and statistics of the channels it kept."""
    tensors, _ = load_tensors(path / "found.safetensors")
    architecture = Architecture.from_json(json.loads((path / "architecture.json").read_bytes()), subject=str(path))
    whole = dict(chain(weights.body.named_parameters(), weights.body.named_buffers()))
    small = extract_small(weights, architecture)
    for name, tensor in tensors.items():
        if name in whole:  # constants are not
            small.put_(name, whole[name], tensor)


def _point_config(run: Context, settings: FrontSettings, cap: str) -> RunConfig:
    """The run's settings, with this cap and a few more epochs than the search had."""
    searched = int(str(run.folder.stage_facts("search")["epochs"]))
    epochs = searched + settings.epochs
    begun = cosine_schedule(1.0, epochs * run.steps_an_epoch).at(searched * run.steps_an_epoch)
    decide = "never" if settings.epochs == 0 else f"{100 * searched / epochs:.8f}%"
    return replace(
        run.config,
        out=str(run.folder.path / FOLDER / f"{settings.cost}-{cap.replace('%', 'pct')}"),
        max_macs=cap if settings.cost == "macs" else None,
        max_params=cap if settings.cost == "params" else None,
        max_latency=None,
        epochs=epochs,
        # The end of this cosine is what is used. Its peak has a bound; less is then asked of very few, late epochs.
        lr=run.config.lr if settings.epochs == 0 else min(MOST_LR, settings.lr / begun),
        schedule="cosine",
        warmup=None,
        lr_floor=0.0,
        milestones=(),
        decide_at=decide,
        budget=None,
        shed="off",
        baseline=(),
        recalibrate="on" if run.config.recalibrate == "auto" else run.config.recalibrate,
    )


def _begin(
    run: Context, config: RunConfig, weights: Supernet, settings: FrontSettings, target: float
) -> Mapping[str, Any]:
    """Make the point's folder with the re-targeted posterior as its search's; what the search came to."""
    with SharedFolder.share(run.processes, lambda: RunFolder.create_or_resume(config)) as point:
        if not point.stage_done("search"):
            supernet = copy.deepcopy(weights)
            found = supernet.retarget_(settings.cost, target)
            point.save_tensors("posterior.safetensors", supernet.state_dict(), {"space": supernet.open().space})
            point.save_tensors("momentum.safetensors", run.folder.load_tensors("momentum.safetensors")[0])
            point.write_json("supernet.json", describe_supernet(supernet))
            facts = {
                **run.folder.stage_facts("search"),
                "val_accuracy": run.score(supernet, run.data.estimate).metric,
                "expected_cost": found.cost,
                "shift": found.shift,
                "start": settings.start,
            }
            point.mark_done("search", 0.0, **facts)
        facts = dict(point.stage_facts("search"))
        if facts.get("start") != settings.start:
            remedy = f"add --start {facts.get('start')}, or remove that folder"
            raise RunFolderError(config.out, "was made with another --start", value=settings.start, remedy=remedy)
        return facts


def _row(run: Context, cap: str, searched: Mapping[str, Any], result: RunResult) -> dict[str, Any]:
    found, decision = result["found"], result["decision"]
    return {
        "cap": cap,
        "macs": found["macs"],
        "params": found["params"],
        "val_accuracy": found["val_accuracy"],
        "test_accuracy": found["test_accuracy"],
        "val_untrained": decision["val_frozen"],
        "expected_cost": searched["expected_cost"],
        "spent": found["epochs"] * found["macs"] / run.full.macs,
        "folder": f"{FOLDER}/{result.path.name}",
    }


def _latency(run: Context, path: Path, model: nn.Module | None) -> dict[str, float]:
    """Seconds a batch of a point's network on the device and, measured beside it, of the full one; measured once."""
    with SharedFolder.share(run.processes, lambda: RunFolder.open(path)) as folder:
        if not folder.stage_done("timing"):
            point = Context(folder, run.progress, model=model, data=run.data, processes=run.processes)
            inputs, _ = run.engine.batch((example_batch(run.example, run.config.latency_batch), 0))
            full = extract_small(run.posterior, run.posterior.open()).module
            networks = {"latency": trained_network(point), "full_latency": full}
            measured = run.processes.from_first(lambda: {name: latency(n, inputs) for name, n in networks.items()})
            folder.mark_done("timing", 0.0, **measured)
        facts = folder.stage_facts("timing")
        return {name: float(str(facts[name])) for name in ("latency", "full_latency")}


def _write(folder: SharedFolder | RunFolder, points: Sequence[Mapping[str, Any]], settings: FrontSettings) -> None:
    searched = folder.stage_facts("search")
    values = {
        "cost": settings.cost,
        "epochs": settings.epochs,
        "search": {key: searched.get(key) for key in ("epochs", "spent")},
        "points": list(points),
    }
    folder.write_json(f"{FOLDER}/front.json", values)
    table = io.StringIO()
    writer = csv.DictWriter(table, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    folder.write_text(f"{FOLDER}/front.csv", table.getvalue())
    folder.write_text(f"{FOLDER}/front.svg", front_figure(points, settings.cost))
