"""PGNAS, and the same with gates that learn nothing: random dropout search."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from bench.peers.cells import Cell
from bench.peers.methods.base import Method
from torch import Tensor, nn

from pgnas.nn import Supernet, supernet
from pgnas.nn.cost import count_plan
from pgnas.seeds import derive_seed
from pgnas.stages import searching
from pgnas.stages.context import Context
from pgnas.stages.pipeline import STAGES
from pgnas.stages.recipe import caps_of
from pgnas.supernets import build_model

SEARCH_EPOCHS = 3
"""Epochs of the search from a trained full network."""
SEARCH_LR = 0.03
"""Its peak learning rate: that with which the networks found are tuned as well."""
SAMPLES = 32
"""Random sub-networks that find the drop rate of random search."""
FIT = 31
"""So many of them are under the cap: what is over it is repaired, and then no longer random."""
STEPS = 9
"""Halvings of the interval of rates: to 2^-9."""


def found(run: Context) -> nn.Module:
    """The best of the sampled sub-networks, with the supernet's weights and statistics."""
    return searching.found_network(run).module


FINDING = {name: STAGES[name] for name in ("search", "sample", "extract")}
TRAINED_START = {"epochs": SEARCH_EPOCHS, "decide_at": "never", "lr": SEARCH_LR, "shed": "off"}


def search(title: str) -> Method:
    """A search by ``pgnas run``, up to and with its stage ``train``."""
    return Method(
        title=title,
        finding=FINDING,
        finding_trained=FINDING,
        found=found,
        spent=searching.spent,
        train=STAGES["train"],
        trained=searching.trained_network,
        settings_trained=TRAINED_START,
    )


PGNAS = search("PGNAS")
RANDOM = search("random dropout search")


def random_settings(cell: Cell, shape: tuple[int, ...], config: Any) -> dict[str, float]:
    """The drop rate of random search: the least at which nearly every random sub-network is under the cap.

    Args:
        cell: The cell.
        shape: (C, H, W) of the images.
        config: The settings of the run, whose caps count.
    """
    channels, *size = shape
    built = build_model(cell.base.spec, in_channels=channels, num_classes=10, image_size=tuple(size), seed=cell.seed)
    made = supernet(built.module, torch.zeros(2, *shape))
    full = made.count(made.open())
    caps = caps_of(config, {"params": full.params, "macs": full.macs})
    return {"fixed_drop": drop_rate(made, dict(caps), seed=cell.seed)}


def drop_rate(made: Supernet, caps: dict[Any, float], *, seed: int) -> float:
    """The least drop rate at which ``FIT`` of ``SAMPLES`` random architectures are under the caps.

    The same draws decide about every rate, so that their costs grow with the keep probability.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "drop rate"))
    uniform = torch.rand(SAMPLES, made.gates.units, generator=generator)
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        keep = (low + high) / 2
        over = (row for row in uniform if not _is_under(made, row < keep, caps))
        too_many = len(list(itertools.islice(over, SAMPLES - FIT + 1))) > SAMPLES - FIT
        low, high = (low, keep) if too_many else (keep, high)
    return round(1 - low, 6)


def _is_under(made: Supernet, kept: Tensor, caps: dict[Any, float]) -> bool:
    counts = count_plan(made.graph, made.plan_units(kept))
    return all(getattr(counts, kind) <= cap for kind, cap in caps.items())
