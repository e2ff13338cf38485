"""PGNAS, and the same with gates that learn nothing: random dropout search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from bench.peers.cells import Cell
from bench.peers.methods.base import Method
from torch import nn

from pgnas.nn import Supernet, supernet
from pgnas.seeds import derive_seed
from pgnas.stages import searching
from pgnas.stages.context import Context
from pgnas.stages.fitting import draw
from pgnas.stages.pipeline import STAGES
from pgnas.supernets import build_model

SEARCH_EPOCHS = 3
"""Epochs of the search from a trained full network."""
SEARCH_LR = 0.03
"""Its peak learning rate: that with which the networks found are tuned as well."""
STEPS = 9
"""Halvings of the interval of rates: to 2^-9."""


def found(run: Context) -> nn.Module:
    """The best of the sampled sub-networks, with the supernet's weights and statistics."""
    return searching.found_network(run).module


FINDING = {name: STAGES[name] for name in ("search", "sample", "extract")}
TRAINED_START = {"epochs": SEARCH_EPOCHS, "decide_at": "never", "lr": SEARCH_LR, "shed": "off"}


def search(title: str, **settings: Any) -> Method:
    """A search by ``pgnas run``, up to and with its stage ``train``; with settings of its own it only starts afresh."""
    return Method(
        title=title,
        finding=FINDING,
        finding_trained=None if settings else FINDING,
        found=found,
        spent=searching.spent,
        train=STAGES["train"],
        trained=searching.trained_network,
        settings=settings,
        settings_trained=TRAINED_START,
    )


PGNAS = search("PGNAS")
PGNAS_EARLY = search("PGNAS, decided at 10 %, 16 candidates", decide_at="10%", candidates=16)
PGNAS_LATE = search("PGNAS, decided at 60 %", decide_at="60%")
RANDOM = search("random dropout search")


def random_settings(cell: Cell, shape: tuple[int, ...]) -> dict[str, Any]:
    """The settings of random search: the least drop rate at which all its candidates are under the cell's cap.

    ``--fixed-drop`` takes no cap beside it, since what is closed to meet one is not random.

    Args:
        cell: The cell.
        shape: (C, H, W) of the images.
    """
    channels, *size = shape
    built = build_model(cell.base.spec, in_channels=channels, num_classes=10, image_size=tuple(size), seed=cell.seed)
    made = supernet(built.module, torch.zeros(2, *shape))
    rate = drop_rate(made, cell.caps(made.count(made.open())), seed=cell.seed, count=cell.candidates)
    return {"fixed_drop": rate, "prior": "bernoulli"}


def drop_rate(made: Supernet, caps: Mapping[str, int], *, seed: int, count: int) -> float:
    """The least drop rate at which the candidates that a run with this seed draws are all under the caps.

    Args:
        made: The supernet (its gates are changed).
        caps: The caps.
        seed: Of the run.
        count: How many candidates it draws.
    """
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        keep = (low + high) / 2
        made.gates.fix_(keep)
        generator = torch.Generator().manual_seed(derive_seed(seed, "candidates"))
        drawn = draw(made, count, {}, generator=generator, with_mode=False)
        is_under = all(getattr(c.counts, kind) <= cap for c in drawn for kind, cap in caps.items())
        low, high = (keep, high) if is_under else (low, keep)
    return 1 - low
