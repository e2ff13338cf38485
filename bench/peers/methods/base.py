"""What a method is, and the stages that several share. Stages are pgnas's: each is done once, kept, and resumed."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.peers import budget
from bench.peers.networks import reshaped
from torch import nn

from pgnas.errors import InputError
from pgnas.nn import Counts, measure
from pgnas.run_folder import RunFolder
from pgnas.stages.context import Context
from pgnas.stages.phases import NetworkPhase
from pgnas.stages.pipeline import Stage
from pgnas.stages.recipe import CALIBRATION_BATCHES
from pgnas.stages.schedule import Schedule
from pgnas.stages.shedding import Pace
from pgnas.stages.store import FolderStore
from pgnas.stages.training import recalibrate
from pgnas.supernets import load_state

Facts = dict[str, Any]
DENSE, PRUNED, TRAINED = "dense.safetensors", "pruned.safetensors", "found.safetensors"


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a smaller network is found and trained, all in one run folder.

    Attributes:
        title: For the table.
        finding: Stages up to the network found, by name, from weights drawn at random.
        finding_trained: Likewise, from the trained full network; None: the method has no use for it.
        found: The network found, before any fine-tuning, with the BatchNorm statistics that the method left it with;
            None: the method finds none, it trains one from the start.
        spent: What finding it cost, in epochs of the full network.
        train: The stage that trains it for what remains of the budget; says its ``epochs``.
        trained: The network afterwards.
        settings: Of its runs, beside those that all methods share.
        settings_trained: Of its runs from the trained full network.
    """

    title: str
    finding: Mapping[str, Stage] = field(default_factory=dict)
    finding_trained: Mapping[str, Stage] | None = None
    found: Callable[[Context], nn.Module] | None = None
    spent: Callable[[Context], float] = lambda run: 0.0
    train: Stage
    trained: Callable[[Context], nn.Module]
    settings: Mapping[str, Any] = field(default_factory=dict)
    settings_trained: Mapping[str, Any] = field(default_factory=dict)


def base_network(run: Context) -> nn.Module:
    """The base network with its starting weights; a copy, as the run counts the full network on its own."""
    return copy.deepcopy(run.built.module)


def counts(run: Context, network: nn.Module) -> Counts:
    """Parameters and multiply-adds, counted alike for every method: on the real network."""
    return measure(network, (run.example,))


def fits(run: Context, network: nn.Module) -> bool:
    """Whether a network is under the caps."""
    found = counts(run, network)
    return all(getattr(found, kind) <= cap for kind, cap in run.caps.items())


def train_plainly(
    run: Context,
    store: FolderStore,
    network: nn.Module,
    *,
    name: str,
    epochs: range,
    schedule: Schedule,
    pace: Pace | None = None,
) -> None:
    """Train one network (it is changed) by the recipe that all methods share, watched on the selection half.

    Args:
        run: The run.
        store: Keeps checkpoints.
        network: The network.
        name: Names them.
        epochs: Epochs of the run that are meant; none: nothing is done.
        schedule: Learning rate.
        pace: Where the steps lie in it; None: where the run's steps do.
    """
    if not epochs:
        return
    run.engine.place(network)
    phase = NetworkPhase(
        network,
        name=name,
        engine=run.engine,
        schedule=schedule,
        loss=run.recipe.loss,
        weight_decay=run.recipe.found_weight_decay,
        compiled=run.compile_choice(name, run.recipe.planned_macs(counts(run, network), len(epochs))),
        pace=pace,
    )
    run.train(phase, epochs, store)


def train_dense(run: Context, store: FolderStore) -> Facts:
    """The stage in which a pruner trains the full network: the first part of the budget, and of the schedule.

    If another pruner has done that beside it, with the same settings, data and code, its weights are taken; the seconds
    said are its.
    """
    epochs = run.recipe.decision_epoch
    other = _same_dense(run)
    if other is None:
        network = base_network(run)
        train_plainly(run, store, network, name="dense", epochs=range(epochs), schedule=run.recipe.schedule)
        run.folder.save_tensors(DENSE, network.state_dict())
        return {"spent": float(epochs), "commit": commit()}
    run.folder.save_tensors(DENSE, other.load_tensors(DENSE)[0])
    seconds = other.stage_facts("dense").get("took", other.stage_seconds("dense"))
    return {"spent": float(epochs), "commit": commit(), "took": seconds, "trained_by": other.path.name}


def _same_dense(run: Context) -> RunFolder | None:
    """A run beside this one that has trained the dense network with these settings, data and code."""
    code = commit()
    for ledger in sorted(run.folder.path.parent.glob("*/stages.json")):
        if code is None or ledger.parent == run.folder.path:
            continue
        try:
            other = RunFolder.open(ledger.parent, writer=False)
        except InputError:  # damaged, or none of ours
            continue
        same = replace(other.config, out=run.config.out) == run.config and other.stage_done("dense")
        same = same and other.stage_facts("dense").get("commit") == code
        if same and other.stage_facts("data") == run.folder.stage_facts("data"):
            return other
    return None


def commit() -> str | None:
    """The checkout's commit, with a plus sign if it was changed since; None without one."""
    where = Path(__file__).parent
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=where, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def dense_network(run: Context) -> nn.Module:
    """What a pruner prunes: the full network as it trained it, or as it was handed in trained."""
    network = base_network(run)
    if run.folder.stage_done("dense"):
        load_state(network, run.folder.load_tensors(DENSE)[0], source=DENSE)
    return run.engine.place(network).eval()


def keep_pruned(run: Context, network: nn.Module, *, spent: float = 0.0, **facts: Any) -> Facts:
    """Keep a pruned network as its tensors; what the stage says of it.

    Args:
        run: The run.
        network: The pruned network.
        spent: What finding it cost beside the dense training, in epochs of the full network.
        facts: What else should be known.
    """
    run.folder.save_tensors(PRUNED, network.state_dict())
    return {"spent": spent, **facts}


def pruned_network(run: Context) -> nn.Module:
    """The pruned network, as pruning left it."""
    return run.engine.place(reshaped(base_network(run), run.folder.load_tensors(PRUNED)[0]))


def spent_pruning(run: Context) -> float:
    """The dense training, what pruning passed forward, and re-estimating BatchNorm."""
    stages = (run.folder.stage_facts(name) for name in ("dense", "prune"))
    return sum(float(str(facts.get("spent", 0.0))) for facts in stages) + recalibration(run, pruned_network(run))


def recalibration(run: Context, network: nn.Module) -> float:
    """What re-estimating a network's BatchNorm statistics costs."""
    images = CALIBRATION_BATCHES * run.config.batch_size
    return budget.of_passes(
        counts(run, network).macs * images, full_macs=run.full.macs, images=run.recipe.examples_an_epoch
    )


def train_pruned(run: Context, store: FolderStore) -> Facts:
    """The stage that re-estimates BatchNorm and fine-tunes with the rest of the budget; the schedule goes on."""
    spent, network = spent_pruning(run), pruned_network(run)
    recalibrate(network, run.calibration_batches(), engine=run.engine)
    epochs, pace = run.recipe.remaining(run.recipe.decision_epoch, spent, counts(run, network))
    train_plainly(run, store, network, name="train", epochs=epochs, schedule=run.recipe.schedule, pace=pace)
    run.folder.save_tensors(TRAINED, network.state_dict())
    return {"epochs": len(epochs)}


def trained_network(run: Context) -> nn.Module:
    """A network of the base network's form after its training."""
    return run.engine.place(reshaped(base_network(run), run.folder.load_tensors(TRAINED)[0]))


def pruner(title: str, prune: Stage, **settings: Any) -> Method:
    """The method that trains the full network, prunes it, re-estimates BatchNorm and fine-tunes."""
    return Method(
        title=title,
        finding={"dense": train_dense, "prune": prune},
        finding_trained=None if settings else {"prune": prune},
        found=pruned_network,
        spent=spent_pruning,
        train=train_pruned,
        trained=trained_network,
        settings=settings,
    )
