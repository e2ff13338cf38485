"""``pgnas front RUN``: networks for several costs from one run, whose posterior is searched on from cap to cap.

Every point is a run folder of its own in the run's ``front/``, made from the largest cap down. It begins with the
network of the point before, or of the run itself: its weights, and the posterior over the units that it keeps. That is
searched on under the lower cap, for half of what a point may cost; then the point is ranked, extracted, trained,
exported and evaluated. Where a posterior meets a cap already, or too few steps remain to get there, it is re-targeted
instead. The points may also be trained together, once all are extracted, instead of each alone. A killed front goes on
where it was.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pgnas.config import RunConfig
from pgnas.data import DataSet
from pgnas.nn import extract_small
from pgnas.nn.timing import latency
from pgnas.processes import join
from pgnas.progress import Progress, SilentReporter
from pgnas.report.front import front_figure, undominated
from pgnas.run_folder import RunFolder, SharedFolder
from pgnas.stages import pipeline
from pgnas.stages.baselines import total_compute
from pgnas.stages.context import Context
from pgnas.stages.front_points import FOLDER, Descent, expected_share, point_path, require_same_front, targets_of
from pgnas.stages.front_settings import FrontSettings
from pgnas.stages.joint import opened, require_same_company, train_together
from pgnas.stages.latency import timed_inputs
from pgnas.stages.result import RunResult
from pgnas.stages.searching import spent_searching, trained_network

_COLUMNS = (
    "cap", "macs", "params", "latency", "full_latency", "val_accuracy", "test_accuracy", "val_untrained", "dominated",
    "expected_cost", "spent", "folder",
)  # fmt: skip


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
        targets = dict(reversed(targets_of(run, settings).items()))  # from the largest to the smallest
        paths = {cap: point_path(run, settings, cap) for cap in targets}
        require_same_company(run, paths)
        require_same_front(run, settings, targets)
        descent, configs = Descent(run, settings, targets), dict[str, RunConfig]()
        for cap in targets:
            configs[cap] = descent.begin(cap)
            progress.note(f"front: {cap} of {settings.cost}")
            until = "extract" if settings.is_joint else "report"
            pipeline.run(configs[cap], until=until, progress=progress, model=model, data=run.data)
            descent.follow(paths[cap])
        if settings.is_joint:
            train_together(run, paths, settings, model=model)
        rows = []
        for cap, config in reversed(configs.items()):
            result = pipeline.run(config, progress=progress, model=model, data=run.data)
            rows.append(_row(cap, result) | _measured(run, settings, paths[cap], model))
        points = [
            {**row, "dominated": not best} for row, best in zip(rows, undominated(rows, settings.cost), strict=True)
        ]
        _write(folder, points, settings)
        return FrontResult(folder.path / FOLDER, tuple(points))


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
    with opened(run, path, model) as point:
        folder = point.folder
        if not folder.stage_done("timing"):
            inputs = timed_inputs(run.recipe, run.example)
            full = extract_small(run.posterior, run.posterior.open()).module
            networks = {"latency": trained_network(point), "full_latency": full}
            measured = run.processes.from_first(lambda: {name: latency(n, inputs) for name, n in networks.items()})
            folder.mark_done("timing", 0.0, **measured)
        facts = folder.stage_facts("timing")
        shared = 0.0 if point.begun else spent_searching(run)
        return {
            **{name: float(str(facts[name])) for name in ("latency", "full_latency")},
            "expected_cost": expected_share(point.posterior, settings),
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
