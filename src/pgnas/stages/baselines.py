"""The comparison a sceptic asks for: plain networks trained at the same total compute."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from pgnas.nn import measure
from pgnas.nn.timing import latency
from pgnas.seeds import derive_seed
from pgnas.stages.context import Context
from pgnas.stages.latency import timed_inputs
from pgnas.stages.searching import spent
from pgnas.stages.store import FolderStore
from pgnas.supernets import build_model, has_width, uniform_width

NO_WIDTH = "the network has no width to scale"


def total_compute(run: Context) -> float:
    """Training compute of the run in multiply-adds x images: both phases, and the ranking's forward passes."""
    trained = int(str(run.folder.stage_facts("train")["epochs"]))
    return (run.full.macs * spent(run) + run.found.macs * trained) * run.recipe.examples_an_epoch


def train_baselines(run: Context) -> None:
    """Train the networks that ``--baseline`` names and record what they achieve."""
    done: dict[str, Any] = dict(run.folder.stage_facts("baselines"))
    for name in run.config.baseline:
        if name in done:
            continue
        run.progress.stage(f"baseline {name}")
        done[name] = _train(run, name)
        run.folder.mark_done("baselines", 0.0, **done)


def _network(run: Context, name: str) -> tuple[nn.Module | None, str]:
    """The plain network of a baseline, and its specification."""
    if name == "full":
        return run.built.module, run.config.model
    shape, limits = run.data.preprocessing, run.caps or {"macs": run.found.macs}
    options = {"in_channels": run.built.in_channels, "num_classes": len(run.data.class_names)}

    def fits(module: nn.Module) -> bool:
        counts = measure(module, (run.example,))
        costs: dict[str, float] = asdict(counts)
        if "latency" in limits:
            costs["latency"] = run.processes.from_first(lambda: _seconds(run, module))
        return all(costs[kind] <= cap for kind, cap in limits.items())

    spec = uniform_width(run.config.model, fits, **options)
    if spec is None:
        return None, ""
    seed = derive_seed(run.config.seed, "weights")
    return build_model(spec, **options, image_size=shape.size, seed=seed).module, spec


def _seconds(run: Context, module: nn.Module) -> float:
    """What a pass takes on the device, as the cap was measured; the module is moved there."""
    return latency(run.engine.place(module), timed_inputs(run.recipe, run.example))


def _train(run: Context, name: str) -> dict[str, Any]:
    network, spec = _network(run, name)
    if network is None:
        note = "no width is under the cap" if has_width(run.config.model) else NO_WIDTH
        run.progress.note(f"baseline {name}: {note}, left out")
        return {"note": note}
    counts = measure(network, (run.example,))
    images = run.recipe.examples_an_epoch
    epochs = max(1, round(total_compute(run) / (counts.macs * images)))
    store = FolderStore(run.folder, f"baseline-{name}")
    run.engine.place(network)
    phase = run.recipe.plain_phase(
        network,
        name=f"baseline-{name}",
        schedule=run.recipe.stretched_schedule(epochs),
        compiled=run.compile_choice(f"baseline-{name}", run.recipe.planned_macs(counts, epochs)),
    )
    try:
        run.train(phase, range(epochs), store)
    finally:
        store.close()
    run.folder.save_tensors(f"baseline-{name}.safetensors", network.state_dict())
    val, test = run.score(network, run.data.estimate), run.score(network, run.data.test)
    return {
        **asdict(counts),
        "model": spec,
        "epochs": epochs,
        "val_accuracy": val.metric,
        "test_accuracy": test.metric,
    }
