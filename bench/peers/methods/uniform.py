"""The same net at uniform width, and the full net: each trained from the start for the whole budget."""

from __future__ import annotations

import functools
from collections.abc import Callable

from bench.peers.methods.base import TRAINED, Facts, Method, base_network, counts, fits, train_plainly, trained_network
from torch import nn

from pgnas.seeds import derive_seed
from pgnas.stages.context import Context
from pgnas.stages.shedding import affordable
from pgnas.stages.store import FolderStore
from pgnas.supernets import build_model, uniform_width


def narrower(run: Context) -> nn.Module:
    """The base network at the largest width that is under the cap.

    Raises:
        ValueError: It is over the cap at width 1.
    """
    shape = run.data.preprocessing
    options = {"in_channels": run.built.in_channels, "num_classes": len(run.data.class_names)}
    spec = uniform_width(run.config.model, functools.partial(fits, run), **options)
    if spec is None:
        raise ValueError(f"{run.config.model}: no width is under the cap")
    seed = derive_seed(run.config.seed, "weights")
    return build_model(spec, **options, image_size=shape.size, seed=seed).module


def _train(run: Context, store: FolderStore, *, make: Callable[[Context], nn.Module]) -> Facts:
    network = make(run)
    budget = float(run.epochs if run.budget is None else run.budget)
    epochs = affordable(budget, run.recipe.cost(counts(run, network)))
    schedule = run.recipe.stretched_schedule(epochs)
    train_plainly(run, store, network, name="train", epochs=range(epochs), schedule=schedule)
    run.folder.save_tensors(TRAINED, network.state_dict())
    return {"epochs": epochs}


UNIFORM = Method(title="uniform width", train=functools.partial(_train, make=narrower), trained=trained_network)
FULL = Method(
    title="the full network, no cap", train=functools.partial(_train, make=base_network), trained=trained_network
)
