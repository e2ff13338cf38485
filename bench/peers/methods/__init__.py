"""The methods that are compared, by name."""

from __future__ import annotations

from bench.peers.methods.base import Method
from bench.peers.methods.fastnas import FASTNAS
from bench.peers.methods.pgnas_search import PGNAS, PGNAS_EARLY, PGNAS_LATE, RANDOM, random_settings
from bench.peers.methods.torch_pruning import TORCH_PRUNING, TORCH_PRUNING_EARLY
from bench.peers.methods.uniform import FULL, UNIFORM

METHODS: dict[str, Method] = {
    "pgnas": PGNAS,
    "uniform": UNIFORM,
    "torch-pruning": TORCH_PRUNING,
    "fastnas": FASTNAS,
    "random": RANDOM,
    "pgnas-early": PGNAS_EARLY,
    "pgnas-late": PGNAS_LATE,
    "torch-pruning-early": TORCH_PRUNING_EARLY,
    "full": FULL,
}
COMPARED = ("pgnas", "uniform", "torch-pruning", "fastnas", "random")
"""What ``all`` does unless told otherwise; the others are variants, and the full network for reference."""
__all__ = ["COMPARED", "METHODS", "Method", "random_settings"]
