"""Torch-Pruning: channels of the smallest mean L2 norm go, over all layers together."""

from __future__ import annotations

from bench.peers.methods.base import Facts, dense_network, fits, keep_pruned, pruner

from pgnas.stages.context import Context
from pgnas.stages.store import FolderStore

STEPS = 400
"""Steps in which all but a hundredth of the channels would go; the first that is under the cap is the last taken."""
MOST = 0.99


def prune(run: Context, store: FolderStore) -> Facts:
    """The stage that prunes until the network is under the cap.

    Raises:
        RuntimeError: It never is.
    """
    import torch_pruning as tp  # slow to import, and there for this method alone

    network = dense_network(run)
    steps = tp.pruner.BasePruner(
        network,
        run.example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=MOST,
        iterative_steps=STEPS,
        ignored_layers=[network.get_submodule("classifier")],
    )
    taken = 0
    while not fits(run, network):
        if taken == STEPS:
            raise RuntimeError("torch_pruning: the network is over the cap after all steps")
        steps.step()
        taken += 1
    return keep_pruned(run, network, steps=taken)


TORCH_PRUNING = pruner("Torch-Pruning, global magnitude", prune)
