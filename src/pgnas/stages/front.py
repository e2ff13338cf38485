"""``pgnas front RUN``: networks for several costs from one run, whose posterior is searched on from cap to cap.

Every point is a run folder of its own in the run's ``front/``, made from the largest cap down. It begins with the
network of the point before, or of the run itself: its weights, and the posterior over the units that it keeps. That is
searched on under the lower cap, for half of what a point may cost; then the point is ranked, extracted, trained,
exported and evaluated. Where a posterior meets a cap already, or too few steps remain to get there, it is re-targeted
instead. A killed front goes on where it was.
"""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

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
from pgnas.stages.baselines import total_compute
from pgnas.stages.context import START_NAME, Context
from pgnas.stages.latency import example_batch
from pgnas.stages.phases import LOGIT_BOUND
from pgnas.stages.result import RunResult
from pgnas.stages.schedule import cosine_schedule
from pgnas.stages.searching import describe_supernet, spent_searching, trained_network
from pgnas.stages.shedding import affordable
from pgnas.supernets import load_state

MOST_CANDIDATES = 16
"""Candidates of a point whose posterior was searched on: few of its gates are undecided, and ranking costs training."""
DESCENT_SHARE = 0.5
"""Share of a point's epochs in which its posterior is searched on."""
NEAR = 1.02
"""A posterior whose expected cost is at most this times the cap is re-targeted: there is nowhere to go down to."""
Cost = Literal["macs", "params"]
Start = Literal["larger", "larger-search", "search"]
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
        epochs: What each network may cost after the search, in epochs of the full network, multiply-adds x examples:
            small networks are trained for more epochs. Ranking the candidates of a re-targeted posterior comes on top.
            0: the posterior is re-targeted and nothing is trained.
        lr: Learning rate at the beginning of these, from where it falls to 0.
        cost: What is capped: multiply-adds or parameters.
        start: What each begins with: the next larger network, trained (the first: that of the run), the search of the
            next larger one (the first: of the run), or always the run's search.
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
        if self.start not in get_args(Start):
            rule = f"must be one of {', '.join(get_args(Start))}"
            raise ConfigError("--start", rule, value=repr(self.start), remedy="choose one")
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
        start, narrowed, own = copy.deepcopy(run.posterior), False, _own_share(run, settings)
        rows: list[dict[str, Any]] = []
        for cap, target in reversed(targets.items()):
            if target <= NEAR * own:
                start, narrowed, own = _narrowed(copy.deepcopy(run.posterior), folder.path), True, 0.0
            descends = _descends(run, settings, start, target)
            config = _searched_on(run, settings, cap) if descends else _retargeted(run, settings, cap, target)
            meeting = None if descends else partial(_meeting, start, settings, target, narrowed=narrowed)
            _begin(run, config, start, settings, meeting)
            progress.note(f"front: {cap} of {settings.cost}")
            result = pipeline.run(config, progress=progress, model=model, data=run.data)
            rows.insert(0, _row(cap, result) | _measured(run, settings, result.path, model))
            if settings.start != "search" and descends:
                start = _posterior_of(start, result.path)
            if settings.start == "larger":
                start, narrowed = _narrowed(start, result.path), True
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


def _descends(run: Context, settings: FrontSettings, start: Supernet, target: float) -> bool:
    """Whether the search goes on from a supernet down to a cap: it costs more, and its logits can move that far."""
    steps = DESCENT_SHARE * settings.epochs * run.steps_an_epoch
    reachable = run.config.fixed_drop is None and run.config.logit_lr * steps >= LOGIT_BOUND
    return reachable and _cost(start, settings) > NEAR * target


def _meeting(start: Supernet, settings: FrontSettings, target: float, *, narrowed: bool) -> Supernet:
    """A posterior that meets a cap: the network that is left of a narrowed one, if that fits, or one re-targeted."""
    if narrowed:
        whole = copy.deepcopy(start)
        whole.gates.open_(LOGIT_BOUND)
        if _cost(whole, settings) <= NEAR * target:
            return whole
    moved = copy.deepcopy(start)
    moved.retarget_(settings.cost, target)
    return moved


def _cost(supernet: Supernet, settings: FrontSettings) -> float:
    """The expected cost of a posterior, as a share of the full network's."""
    return float(supernet.expected_cost(settings.cost).detach())


def _own_share(run: Context, settings: FrontSettings) -> float:
    """The share of the full network's cost up to which points begin with the run's own network; 0: none does.

    That is its own cap, or what it costs without one, if it is trained and wanted as a start.
    """
    if settings.start != "larger" or not run.folder.stage_done("train"):
        return 0.0
    found = asdict(run.found)[settings.cost]
    return float(max(found, run.caps.get(settings.cost, 0.0)) / run.recipe.full_costs[settings.cost])


def _posterior_of(supernet: Supernet, path: Path) -> Supernet:
    """The supernet with the posterior, weights and statistics of the search in a run folder; it is changed."""
    load_state(supernet, load_tensors(path / "posterior.safetensors")[0], source=str(path))
    return supernet


@torch.no_grad()
def _narrowed(supernet: Supernet, path: Path) -> Supernet:
    """The supernet with only the units of the network that a run found, and its weights and statistics; changed."""
    tensors, _ = load_tensors(path / "found.safetensors")
    architecture = Architecture.from_json(json.loads((path / "architecture.json").read_bytes()), subject=str(path))
    whole = dict(chain(supernet.body.named_parameters(), supernet.body.named_buffers()))
    small = extract_small(supernet, architecture)
    for name, tensor in tensors.items():
        if name in whole:  # constants are not
            small.put_(name, whole[name], tensor)
    supernet.gates.narrow_(architecture)
    return supernet


def _point(run: Context, settings: FrontSettings, cap: str, **chosen: Any) -> RunConfig:
    """The run's settings, with this cap and what is chosen for a point."""
    return replace(
        run.config,
        out=str(run.folder.path / FOLDER / f"{settings.cost}-{cap.replace('%', 'pct')}"),
        max_macs=cap if settings.cost == "macs" else None,
        max_params=cap if settings.cost == "params" else None,
        max_latency=None,
        prior=run.config.prior_name,  # a run without a cap has another one than a run with one, and other gates
        schedule="cosine",
        warmup=None,
        lr_floor=0.0,
        milestones=(),
        baseline=(),
        finalists=0,  # what a point may cost is for its own search and training
        **chosen,
    )


def _searched_on(run: Context, settings: FrontSettings, cap: str) -> RunConfig:
    """Of a point whose posterior is searched on."""
    return _point(
        run, settings, cap,
        epochs=None,
        budget=str(settings.epochs),
        lr=settings.lr,
        decide_at=f"{DESCENT_SHARE:.0%}",
        shed="auto",
        candidates=min(MOST_CANDIDATES, run.config.candidates),
        weights_first=0.0,
    )  # fmt: skip


def _retargeted(run: Context, settings: FrontSettings, cap: str, target: float) -> RunConfig:
    """Of a point whose posterior is re-targeted: it has some more epochs than the search had."""
    searched = int(str(run.folder.stage_facts("search")["epochs"]))
    epochs = searched + affordable(settings.epochs, min(1.0, target))
    begun = cosine_schedule(1.0, epochs * run.steps_an_epoch).at(searched * run.steps_an_epoch)
    return _point(
        run, settings, cap,
        epochs=epochs,
        # The end of this cosine is what is used. Its peak has a bound; less is then asked of very few, late epochs.
        lr=run.config.lr if settings.epochs == 0 else min(MOST_LR, settings.lr / begun),
        decide_at="never" if settings.epochs == 0 else f"{100 * searched / epochs:.8f}%",
        budget=None,
        shed="off",
        recalibrate="on" if run.config.recalibrate == "auto" else run.config.recalibrate,
    )  # fmt: skip


def _begin(
    run: Context, config: RunConfig, start: Supernet, settings: FrontSettings, meeting: Callable[[], Supernet] | None
) -> None:
    """Make the point's folder, with the posterior that its search begins with or, made by ``meeting``, ends with."""
    with SharedFolder.share(run.processes, lambda: RunFolder.create_or_resume(config)) as point:
        if not point.stage_done("start"):
            if meeting is not None:
                _mark_searched(run, point, meeting())
            else:
                point.save_tensors(START_NAME, start.state_dict())
            point.mark_done("start", 0.0, start=settings.start)
        begun = point.stage_facts("start")["start"]
        if begun != settings.start:
            remedy = f"add --start {begun}, or remove that folder"
            raise RunFolderError(config.out, "was made with another --start", value=settings.start, remedy=remedy)


def _mark_searched(run: Context, point: SharedFolder | RunFolder, supernet: Supernet) -> None:
    """The search of a point is the run's, with another posterior."""
    point.save_tensors("posterior.safetensors", supernet.state_dict(), {"space": supernet.open().space})
    point.save_tensors("momentum.safetensors", run.folder.load_tensors("momentum.safetensors")[0])
    point.write_json("supernet.json", describe_supernet(supernet))
    facts = {**run.folder.stage_facts("search"), "val_accuracy": run.score(supernet, run.data.estimate).metric}
    point.mark_done("search", 0.0, **facts)


def _row(cap: str, result: RunResult) -> dict[str, Any]:
    found, decision = result["found"], result["decision"]
    return {
        "cap": cap,
        "macs": found["macs"],
        "params": found["params"],
        "val_accuracy": found["val_accuracy"],
        "test_accuracy": found["test_accuracy"],
        "val_untrained": decision["val_frozen"],
        "folder": f"{FOLDER}/{result.path.name}",
    }


def _measured(run: Context, settings: FrontSettings, path: Path, model: nn.Module | None) -> dict[str, float]:
    """What a point's posterior is expected to cost, what the point did, and its latency, beside the full network's.

    Seconds a batch on the device, measured once.
    """
    with SharedFolder.share(run.processes, lambda: RunFolder.open(path)) as folder:
        point = Context(folder, run.progress, model=model, data=run.data, processes=run.processes)
        if not folder.stage_done("timing"):
            inputs, _ = run.engine.batch((example_batch(run.example, run.config.latency_batch), 0))
            full = extract_small(run.posterior, run.posterior.open()).module
            networks = {"latency": trained_network(point), "full_latency": full}
            measured = run.processes.from_first(lambda: {name: latency(n, inputs) for name, n in networks.items()})
            folder.mark_done("timing", 0.0, **measured)
        facts = folder.stage_facts("timing")
        shared = 0.0 if point.begun else spent_searching(run)
        return {
            **{name: float(str(facts[name])) for name in ("latency", "full_latency")},
            "expected_cost": _cost(point.posterior, settings),
            "spent": total_compute(point) / run.recipe.planned_macs(run.full, 1) - shared,
        }


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
