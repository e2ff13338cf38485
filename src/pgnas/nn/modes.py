"""Training and evaluation modes of a network that is somebody else's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """A module in evaluation while this lasts, each of its parts in its own mode afterwards."""
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
