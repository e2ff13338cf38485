"""Torch-Pruning: the channels of least norm go, over all layers together, in one step."""

from __future__ import annotations

from bench.peers.methods.base import Facts, dense_network, fits, keep_pruned, pruner
from torch import nn

from pgnas.stages.context import Context
from pgnas.stages.store import FolderStore

MOST = 0.99
"""Share of the channels that may go."""
STEPS = 12
"""Halvings of the interval of shares: to a 4000th."""


def prune(run: Context, store: FolderStore) -> Facts:
    """The stage that prunes the least share of the channels after which the network is under the cap.

    In one step, which is the package's default: its importance is relative to the mean of a layer, so that over
    many steps without training between them narrow layers would lose ever more (from trained networks at 40 % of the
    multiply-adds 400 steps left the stem 1 to 3 channels and an accuracy of 18-34 %, one step 8 to 10 and 50-54 %).

    Raises:
        RuntimeError: It is not under the cap with the largest share.
    """
    low, high = 0.0, MOST
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(run, _pruned(run, middle)) else (middle, high)
    network = _pruned(run, high)
    if not fits(run, network):
        raise RuntimeError(f"torch_pruning: the network is over the cap without {MOST:.0%} of its channels")
    return keep_pruned(run, network, share=high)


def _pruned(run: Context, share: float) -> nn.Module:
    import torch_pruning as tp  # slow to import, and there for this method alone

    network = dense_network(run)
    tp.pruner.BasePruner(
        network,
        run.example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=share,
        ignored_layers=[network.get_submodule("classifier")],
    ).step()
    return network


TORCH_PRUNING = pruner("Torch-Pruning, global magnitude", prune)
TORCH_PRUNING_EARLY = pruner("Torch-Pruning after 25 %", prune, decide_at="25%")
