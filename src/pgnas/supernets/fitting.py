"""Fit a network that somebody else built to the data: which image channels it reads, and how many classes it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgnas.errors import ModelError
from pgnas.nn.modes import evaluation

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class Trial:
    """What a network made of two blank images.

    Attributes:
        example: The images.
        output: Its output.
    """

    example: Tensor
    output: Any

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.example.shape[1]


def try_channels(spec: str, module: nn.Module, in_channels: int, image_size: tuple[int, ...]) -> Trial:
    """Run a network on images of the data's channels; if it refuses them, of those that one of its convolutions reads.

    Args:
        spec: What ``--model`` names, for the error.
        module: The network.
        in_channels: Channels of the data's images.
        image_size: (height, width) of the images; (frames, height, width) of clips and volumes.

    Raises:
        ModelError: It runs on images of none of these.
    """
    read = dict.fromkeys(layer.in_channels for layer in module.modules() if isinstance(layer, _CONVOLUTIONS))
    troubles: dict[int, Exception] = {}
    for channels in dict.fromkeys((in_channels, *read)):
        try:
            return _tried(module, torch.zeros(2, channels, *image_size))
        except Exception as error:  # a network may refuse its input in any way
            troubles[channels] = error
    likely = in_channels if in_channels in read else next(iter(read), in_channels)
    trouble = troubles[likely]
    raise ModelError(
        f"--model {spec}",
        f"must run on images of shape {(likely, *image_size)}",
        value=str(trouble).splitlines()[0][:300] if str(trouble) else type(trouble).__name__,
        remedy="choose another --image-size or build it for this number of channels",
    ) from trouble


def fit_classifier(spec: str, module: nn.Module, trial: Trial, num_classes: int) -> str | None:
    """Replace the classifier if it has another number of outputs; its name, or None if it fits.

    Args:
        spec: What ``--model`` names, for the error.
        module: The network.
        trial: What it made of images.
        num_classes: Outputs that it shall have.

    Raises:
        ModelError: It does not give one row of logits an image, or there is no such layer.
    """
    output = trial.output
    if not isinstance(output, Tensor) or output.ndim != 2:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            f"--model {spec}", "must give one row of logits an image", value=found, remedy="add a classifier to it"
        )
    if output.shape[1] == num_classes:
        return None
    layers = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    fitting = [(n, m) for n, m in layers if _outputs(m) == output.shape[1]]
    if fitting:
        name: str = fitting[-1][0]
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, _with_outputs(fitting[-1][1], num_classes))
        return name
    raise ModelError(
        f"--model {spec}",
        f"must have {num_classes} outputs",
        value=output.shape[1],
        remedy="give its factory a parameter num_classes",
    )


def _tried(module: nn.Module, example: Tensor) -> Trial:
    with evaluation(module), torch.no_grad():
        return Trial(example, module(example))


def _outputs(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else int(getattr(layer, "out_channels", 0))


def _with_outputs(layer: nn.Linear | nn.Conv2d, outputs: int) -> nn.Module:
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, outputs, bias)
    kernel, stride = layer.kernel_size, layer.stride
    return nn.Conv2d(layer.in_channels, outputs, kernel, stride, layer.padding, bias=bias)  # type: ignore[arg-type]
