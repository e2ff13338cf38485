"""FastNAS of NVIDIA's Model-Optimizer: widths by a sensitivity a layer, found by bisection over what may be lost."""

from __future__ import annotations

from typing import Any

import torch
from bench.peers import budget
from bench.peers.methods.base import Facts, dense_network, fits, keep_pruned, pruner
from torch import Tensor, nn

from pgnas.nn.macs import watch_macs
from pgnas.stages.context import Context
from pgnas.stages.store import FolderStore

DIVISOR = 8
"""Of numbers of channels; the default of 32 would leave layers of 32 channels no choice."""
IMAGES = 1_000
"""Images of the selection half that score a sub-network: of the 2,500, as all passes are counted as compute."""
QUEUE = 50
"""Batches that modelopt keeps to re-estimate BatchNorm for every sub-network; with fewer it leaves that out."""
TIGHTER = 0.97
"""Each further search has this share of the cap of the one before, if the network found is over it as pgnas counts."""
SEARCHES = 5
WITHOUT_BATCHNORM = 0.99
"""Share of a cap on parameters that is asked for: modelopt does not count those of BatchNorm, under 1 % here."""


def prune(run: Context, store: FolderStore) -> Facts:
    """The stage that searches and prunes.

    Raises:
        RuntimeError: No search ends under the cap.
    """
    spent, share = 0.0, WITHOUT_BATCHNORM if "params" in run.caps else 1.0
    for searched in range(1, SEARCHES + 1):
        # modelopt refuses channels-last, which the engine chooses on a CPU as well
        network = dense_network(run).to(memory_format=torch.contiguous_format)
        spent += budget.of_passes(
            float(_search(run, network, share)), full_macs=run.full.macs, images=run.recipe.examples_an_epoch
        )
        if fits(run, network):
            return keep_pruned(run, network, spent=spent, searches=searched)
        share *= TIGHTER
    raise RuntimeError("fastnas: the network is over the cap after all searches")


def _search(run: Context, network: nn.Module, share: float) -> int:
    """Search in a network, which becomes the one found; the multiply-adds of all passes over all images."""
    import modelopt.torch.nas as mtn  # slow to import, and there for this method alone
    import modelopt.torch.prune as mtp
    from modelopt.torch.prune.pruning import PruneModeRegistry

    settings = mtp.fastnas.FastNASConfig()
    settings["nn.Conv2d"]["*"]["channel_divisor"] = DIVISOR
    settings["nn.BatchNorm2d"]["*"]["feature_divisor"] = DIVISOR
    settings["nn.Linear"]["*"]["feature_divisor"] = DIVISOR
    ((kind, cap),) = run.caps.items()
    constraint = {"flops": 2 * share * cap} if kind == "macs" else {"params": share * cap}  # a multiply and an add
    select = run.data.select
    scored = run.held_out(select.take(torch.arange(0, len(select), max(1, len(select) // IMAGES))))  # sorted by class
    passed: list[int] = []
    config: dict[str, Any] = {
        "data_loader": _pieces(run),
        "collect_func": lambda images: images,
        "score_func": lambda model: run.recipe.score(model.eval(), scored).metric,
        "verbose": False,
    }
    space = mtn.convert(network, [("fastnas", settings)], registry=PruneModeRegistry)
    with watch_macs(space, passed.append):
        mtn.search(space, constraint, run.example[:1], config=config)
    return sum(passed)


def _pieces(run: Context) -> list[Tensor]:
    """The images on which BatchNorm is re-estimated for every method, in as many batches as modelopt wants."""
    images = torch.cat([images for images, *_ in run.calibration_batches()])
    return list(torch.tensor_split(images, QUEUE))


FASTNAS = pruner("Model-Optimizer FastNAS", prune)
