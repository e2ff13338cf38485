"""The loss and the metric of a classifier, for networks whose outputs may be something else."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from pgnas.errors import ConfigError
from pgnas.stages.training import Loss, Metric, accuracy


def explained(loss: Loss, metric: Metric) -> tuple[Loss, Metric]:
    """The loss and the metric; cross-entropy and accuracy say what to do if the outputs are not one tensor of logits.

    The loss says so for both, as it is asked first; but a tuple may be that of auxiliary heads, which evaluation lacks.
    """

    def checked_loss(outputs: Any, targets: Any) -> Tensor:
        if loss is F.cross_entropy:
            _require_logits("loss", outputs)
        if metric is accuracy and not isinstance(outputs, tuple):
            _require_logits("metric", outputs)
        return loss(outputs, targets)

    def checked_accuracy(outputs: Any, targets: Any) -> Tensor:
        _require_logits("metric", outputs)
        return accuracy(outputs, targets)

    return checked_loss, checked_accuracy if metric is accuracy else metric


def _require_logits(setting: str, outputs: Any) -> None:
    if not isinstance(outputs, Tensor):
        raise ConfigError(
            f"pgnas.search setting '{setting}'",
            "must be given for a network whose output is not one tensor of logits",
            value=f"a {type(outputs).__name__}",
            remedy="pass loss= and metric=, functions of (outputs, targets)",
        )
