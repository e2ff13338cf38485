"""A front's points: where the posterior of each comes from, its settings, its run folder."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgnas.amounts import Amount
from pgnas.architecture import Architecture
from pgnas.config import RunConfig
from pgnas.errors import ConfigError, RunFolderError
from pgnas.nn import Supernet, extract_small
from pgnas.run_folder import OTHER_SETTINGS, RunFolder, SharedFolder
from pgnas.run_folder.admission import CONFIG_NAME, require_same
from pgnas.stages.context import START_NAME, Context
from pgnas.stages.front_settings import FrontSettings
from pgnas.stages.phases import LOGIT_BOUND
from pgnas.stages.reporting import command
from pgnas.stages.schedule import cosine_schedule
from pgnas.stages.searching import describe_supernet
from pgnas.stages.shedding import affordable
from pgnas.supernets import load_state

MOST_CANDIDATES = 4
"""Candidates of a point whose posterior was searched on: few of its gates are undecided, and ranking costs training.

Nor has a point more that is trained together with others.
"""
NEAR = 1.02
"""A posterior whose expected cost is at most this times the cap is re-targeted: there is nowhere to go down to."""
FOLDER = "front"
MOST_LR = 1_000.0
"""The most that ``lr`` of a run's settings may be."""


def targets_of(run: Context, settings: FrontSettings) -> dict[str, float]:
    """Each cap and its share of the full network's cost, cheapest first."""
    full = run.full.macs if settings.cost == "macs" else run.full.params
    shares = {cap: Amount.parse(cap, subject="--caps").of(full) / full for cap in settings.wanted}
    targets = dict(sorted(shares.items(), key=lambda item: item[1]))
    for cap, share in targets.items():
        if share > 1 or share * full < 1:
            rule = f"must lie between 1 and the network's {full:,}"
            raise ConfigError("--caps", rule, value=cap, remedy="change the cap")
        # Refused before any network is trained.
        run.recipe.require_reachable(run.posterior, {settings.cost: share * full}, "--caps")
        copy.deepcopy(run.posterior).retarget_(settings.cost, share)
    return targets


class Descent:
    """From the largest cap down: which posterior each point begins with.

    Args:
        run: The run; its search is done.
        settings: What is asked for.
        targets: Caps to shares of the full network's cost.
    """

    def __init__(self, run: Context, settings: FrontSettings, targets: Mapping[str, float]) -> None:
        self._run, self._settings, self._targets = run, settings, targets
        self._start, self._is_narrowed = copy.deepcopy(run.posterior), False
        self._kept: Tensor | None = None  # of the free units those that a narrowed start has, bool
        self._own, self._descended = _own_share(run, settings), False

    def begin(self, cap: str) -> RunConfig:
        """Make the folder of the next point, unless it is there; its settings."""
        run, settings, target = self._run, self._settings, self._targets[cap]
        if target <= NEAR * self._own:
            self._start, self._kept = copy.deepcopy(run.posterior), None
            self._narrow(run.folder.path)
            self._own = 0.0
        start, is_narrowed = self._start, self._is_narrowed
        self._descended = _descends(run, settings, start, target)
        if self._descended:
            config = _searched_on(run, settings, cap)
            _begin(run, config, start, settings, None)
        else:
            config = _retargeted(run, settings, cap, target)
            _begin(run, config, start, settings, lambda: _meeting(start, settings, target, narrowed=is_narrowed))
        return config

    def follow(self, path: Path) -> None:
        """Let the next point begin with what the one in a folder has learned, as the settings say."""
        if self._settings.start != "search" and self._descended:
            self._start, self._kept = _posterior_of(self._run, self._start, path), None
        if self._settings.start == "larger":
            self._narrow(path)

    def _narrow(self, path: Path) -> None:
        """Let the next point begin with the network that a run found."""
        with _read_only(self._run, path) as folder:
            architecture = Architecture.from_json(
                folder.read_json("architecture.json", stage="sample"), subject=str(path)
            )
            tensors, _ = folder.load_tensors("found.safetensors")
        gates = self._start.gates
        units = gates.mask(architecture)[: gates.free] > 0  # options of choices stay open in any case
        if self._kept is not None and bool((units & ~self._kept).any()):  # made before the one that is larger
            self._start = copy.deepcopy(self._run.posterior)
        _narrow_to(self._start, architecture, tensors)
        self._is_narrowed, self._kept = True, units


def _descends(run: Context, settings: FrontSettings, start: Supernet, target: float) -> bool:
    """Whether the search goes on from a supernet down to a cap: it costs more, and its logits can move that far."""
    steps = settings.search_share * settings.epochs * run.steps_an_epoch
    reachable = run.config.fixed_drop is None and run.config.logit_lr * steps >= LOGIT_BOUND
    return reachable and expected_share(start, settings) > NEAR * target


def _meeting(start: Supernet, settings: FrontSettings, target: float, *, narrowed: bool) -> Supernet:
    """A posterior that meets a cap: the network that is left of a narrowed one, if that fits, or one re-targeted."""
    if narrowed:
        whole = copy.deepcopy(start)
        whole.gates.open_(LOGIT_BOUND)
        if expected_share(whole, settings) <= NEAR * target:
            return whole
    moved = copy.deepcopy(start)
    moved.retarget_(settings.cost, target)
    return moved


def expected_share(supernet: Supernet, settings: FrontSettings) -> float:
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


def _read_only(run: Context, path: Path) -> RunFolder:
    """A run folder that the first process reads for all."""
    return SharedFolder.share(run.processes, lambda: RunFolder.open(path, writer=False))


def _posterior_of(run: Context, supernet: Supernet, path: Path) -> Supernet:
    """The supernet with the posterior, weights and statistics of the search in a run folder; it is changed."""
    with _read_only(run, path) as folder:
        load_state(supernet, folder.load_tensors("posterior.safetensors")[0], source=str(path))
    return supernet


@torch.no_grad()
def _narrow_to(supernet: Supernet, architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
    """Leave a supernet the units of a network alone, with that network's weights and statistics."""
    whole = dict(chain(supernet.body.named_parameters(), supernet.body.named_buffers()))
    small = extract_small(supernet, architecture)
    for name, tensor in tensors.items():
        if name in whole:  # constants are not
            small.put_(name, whole[name], tensor)
    supernet.gates.narrow_(architecture)


def point_path(run: Context, settings: FrontSettings, cap: str) -> Path:
    """The run folder of a point."""
    return run.folder.path / FOLDER / f"{settings.cost}-{cap.replace('%', 'pct')}"


def require_same_front(run: Context, settings: FrontSettings, targets: Mapping[str, float]) -> None:
    """Check, before any of them is gone on with, that points that are there were made with the same settings.

    Args:
        run: The run whose points they are.
        settings: What is asked for.
        targets: Caps to shares of the full network's cost.

    Raises:
        RunFolderError: One was made with another start, or other epochs or learning rate of its own.
    """
    for cap, target in targets.items():
        path = point_path(run, settings, cap)
        if not run.processes.from_first((path / CONFIG_NAME).exists):
            continue
        with _read_only(run, path) as point:
            if point.stage_done("start"):
                _require_same_start(point, settings)
            there = point.config
        searched_on = there.budget is not None
        config = _searched_on(run, settings, cap) if searched_on else _retargeted(run, settings, cap, target)
        with _told_of_the_front(config.out):
            require_same(path, there, config)


@contextlib.contextmanager
def _told_of_the_front(out: str) -> Iterator[None]:
    """Tell of other settings in the words of who made a front."""
    try:
        yield
    except RunFolderError as error:
        if error.rule != OTHER_SETTINGS:
            raise
        rule, remedy = "was made with other settings of the front", "repeat those (--epochs, --lr), or remove it"
        raise RunFolderError(out, rule, value=error.value, remedy=remedy) from error


def _require_same_start(point: SharedFolder | RunFolder, settings: FrontSettings) -> None:
    begun = point.stage_facts("start")["start"]
    if begun != settings.start:
        remedy = f"add --start {begun}, or remove that folder"
        raise RunFolderError(str(point.path), "was made with another --start", value=settings.start, remedy=remedy)


def _point(run: Context, settings: FrontSettings, cap: str, **chosen: Any) -> RunConfig:
    """The run's settings, with this cap and what is chosen for a point."""
    return replace(
        run.config,
        out=str(point_path(run, settings, cap)),
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
        fixed_drop=None,  # its cap decides
        # The gates are those of the run, which "auto" gives no streams at a fixed rate.
        streams="off" if run.config.fixed_drop is not None and run.config.streams == "auto" else run.config.streams,
        **chosen,
    )


def _searched_on(run: Context, settings: FrontSettings, cap: str) -> RunConfig:
    """Of a point whose posterior is searched on."""
    return _point(
        run, settings, cap,
        epochs=None,
        budget=str(settings.epochs),
        lr=settings.first_lr(run.config.optimizer),
        decide_at=f"{settings.search_share:.0%}",
        shed="auto",
        **_few(run),
        weights_first=0.0,
    )  # fmt: skip


def _retargeted(run: Context, settings: FrontSettings, cap: str, target: float) -> RunConfig:
    """Of a point whose posterior is re-targeted: after the search it has what epochs of its own are paid for."""
    more = 0 if settings.is_joint else affordable(settings.epochs, min(1.0, target))
    searched = int(str(run.folder.stage_facts("search")["epochs"]))
    epochs = searched + more
    begun = cosine_schedule(1.0, epochs * run.steps_an_epoch).at(searched * run.steps_an_epoch)
    return _point(
        run, settings, cap,
        epochs=epochs,
        # The end of this cosine is what is used. Its peak has a bound; less is then asked of very few, late epochs.
        lr=run.config.peak_lr if more == 0 else min(MOST_LR, settings.first_lr(run.config.optimizer) / begun),
        decide_at="never" if more == 0 else f"{100 * searched / epochs:.8f}%",
        budget=None,
        **(_few(run) if settings.is_joint else {}),
        shed="off",
        recalibrate="on" if run.config.recalibrate == "auto" else run.config.recalibrate,
    )  # fmt: skip


def _few(run: Context) -> dict[str, Any]:
    """Few candidates, which a race could not rank for less than scoring all of them."""
    return {"candidates": min(MOST_CANDIDATES, run.config.candidates), "ranking": "exhaustive"}


def _begin(
    run: Context, config: RunConfig, start: Supernet, settings: FrontSettings, meeting: Callable[[], Supernet] | None
) -> None:
    """Make the point's folder, with the posterior that its search begins with or, made by ``meeting``, ends with."""

    def made() -> RunFolder:
        with _told_of_the_front(config.out):
            return RunFolder.create_or_resume(config)

    with SharedFolder.share(run.processes, made) as point:
        if not point.stage_done("start"):
            if meeting is not None:
                _mark_searched(run, point, meeting())
            else:
                point.save_tensors(START_NAME, start.state_dict())
            made_by = command(run.config)
            commands = [] if made_by is None else [made_by, settings.command(run.folder.path)]
            point.mark_done("start", 0.0, start=settings.start, commands=commands)
        _require_same_start(point, settings)


def _mark_searched(run: Context, point: SharedFolder | RunFolder, supernet: Supernet) -> None:
    """The search of a point is the run's, with another posterior."""
    point.save_tensors("posterior.safetensors", supernet.state_dict(), {"space": supernet.open().space})
    point.save_tensors("momentum.safetensors", run.folder.load_tensors("momentum.safetensors")[0])
    point.write_json("supernet.json", describe_supernet(supernet))
    facts = {**run.folder.stage_facts("search"), "val_accuracy": run.score(supernet, run.data.estimate).metric}
    point.mark_done("search", 0.0, **facts)
