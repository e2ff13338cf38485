"""The methods that are compared, by name."""

from __future__ import annotations

from bench.peers.methods.base import Method
from bench.peers.methods.fastnas import FASTNAS
from bench.peers.methods.pgnas_search import PGNAS, RANDOM, random_settings
from bench.peers.methods.torch_pruning import TORCH_PRUNING
from bench.peers.methods.uniform import FULL, UNIFORM

METHODS: dict[str, Method] = {
    "pgnas": PGNAS,
    "uniform": UNIFORM,
    "torch-pruning": TORCH_PRUNING,
    "fastnas": FASTNAS,
    "random": RANDOM,
    "full": FULL,
}
PEERS = [name for name in METHODS if name not in ("pgnas", "full")]
__all__ = ["METHODS", "PEERS", "Method", "random_settings"]
