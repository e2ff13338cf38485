"""How long things take on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from pgnas.nn.modes import evaluation


def seconds(function: Callable[[], Any], *, at_least: float = 0.01) -> float:
    """The median seconds of one call; the device's queue is waited for.

    Args:
        function: What is timed, called as often as needed.
        at_least: Seconds to spend on measuring.
    """
    function()  # allocations and the choice of kernels
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=at_least).median)


def latency(module: nn.Module, inputs: Sequence[Tensor], *, at_least: float = 0.3) -> float:
    """The median seconds of one forward pass of ``module`` in evaluation, without gradients; it is left as it was."""
    with evaluation(module), torch.inference_mode():
        return seconds(lambda: module(*inputs), at_least=at_least)
