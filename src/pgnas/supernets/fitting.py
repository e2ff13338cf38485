"""Fit a network that somebody else built to the data: which image channels it reads, and how many classes it tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgnas.errors import ModelError, first_line
from pgnas.nn.modes import evaluation

_CLASSIFIERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class Trial:
    """What a network made of two blank images.

    Attributes:
        example: The images.
        output: Its output.
        called: The layers that could be its classifier, in the order of their last calls.
    """

    example: Tensor
    output: Any
    called: tuple[nn.Module, ...]

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
        ModelError: It runs on images of none of these, or not on one image alone.
    """
    read = dict.fromkeys(layer.in_channels for layer in module.modules() if isinstance(layer, _CONVOLUTIONS))
    troubles: dict[int, Exception] = {}
    for channels in dict.fromkeys((in_channels, *read)):
        try:
            trial = _tried(module, torch.zeros(2, channels, *image_size))
        except Exception as error:  # a network may refuse its input in any way
            troubles[channels] = error
        else:
            _require_one_image(f"--model {spec}", module, trial.example, trial.output)
            return trial
    likely = in_channels if in_channels in read else next(iter(read), in_channels)
    trouble = troubles[likely]
    raise ModelError(
        f"--model {spec}",
        f"must run on images of shape {(likely, *image_size)}",
        value=first_line(trouble)[:300],
        remedy="choose another --image-size or build it for this number of channels",
    ) from trouble


def fit_classifier(spec: str, module: nn.Module, trial: Trial, num_classes: int) -> str | None:
    """Replace the classifier if it has another number of outputs; its name, or None if it fits.

    It is the layer called last of those with as many outputs as the network, by whose replacement the network has
    ``num_classes``. The new one has all settings of the old one, but not its weights.

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
    for layer in reversed(trial.called):
        names: list[str] = [name for name, part in module.named_modules(remove_duplicate=False) if part is layer]
        fitted = _with_outputs(layer, num_classes) if _outputs(layer) == output.shape[1] and "" not in names else None
        if fitted is None:
            continue
        _put(module, names, fitted)
        if _has_outputs(module, trial.example, num_classes):
            return names[0]
        _put(module, names, layer)
    raise ModelError(
        f"--model {spec}",
        f"must have {num_classes} outputs",
        value=output.shape[1],
        remedy="give its factory a parameter num_classes",
    )


def require_outputs(module: nn.Module, shape: Sequence[int], num_classes: int) -> None:
    """Check that a network that a user made tells as many classes as the data has.

    Args:
        module: The network; one that does not run at all is left to who traces it.
        shape: Of an example, (C, [D,] H, W).
        num_classes: Classes of the data.

    Raises:
        ModelError: Its output, or the first of several, is not (B, num_classes), or not for one image alone.
    """
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    example = like.new_zeros(2, *shape)
    try:
        output = _run(module, example)
    except Exception:
        return
    main = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(main, Tensor) or main.shape != (2, num_classes):
        found = tuple(main.shape) if isinstance(main, Tensor) else type(main).__name__
        raise ModelError(
            f"model {type(module).__name__}",
            f"must give {num_classes} logits an image, one for each class of the data",
            value=f"{found} for 2 images" if isinstance(main, Tensor) else found,
            remedy="give it such a classifier",
        )
    _require_one_image(f"model {type(module).__name__}", module, example, main)


def _require_one_image(subject: str, module: nn.Module, example: Tensor, output: Any) -> None:
    """Check that a network that works on two images works on one, as what is left of a split may be."""
    if not isinstance(output, Tensor):
        return
    value = ""
    try:
        alone = _run(module, example[:1])
        main = alone[0] if isinstance(alone, tuple | list) else alone
        if main.shape != (1, *output.shape[1:]):
            value = f"{tuple(main.shape)} for 1 image, {tuple(output.shape)} for 2"
    except Exception as error:
        value = first_line(error)[:300]
    if value:
        rule, remedy = "must work on one image as on several", "keep the batch axis: flatten(1) instead of squeeze()"
        raise ModelError(subject, rule, value=value, remedy=remedy)


def _tried(module: nn.Module, example: Tensor) -> Trial:
    called: dict[nn.Module, None] = {}

    def note(layer: nn.Module, *_: Any) -> None:
        called.pop(layer, None)
        called[layer] = None

    hooks = [layer.register_forward_hook(note) for layer in module.modules() if isinstance(layer, _CLASSIFIERS)]
    try:
        return Trial(example, _run(module, example), tuple(called))
    finally:
        for hook in hooks:
            hook.remove()


def _run(module: nn.Module, example: Tensor) -> Any:
    with evaluation(module), torch.no_grad():
        return module(example)


def _has_outputs(module: nn.Module, example: Tensor, outputs: int) -> bool:
    try:
        found = _run(module, example)
    except Exception:  # what follows a layer that is no classifier may refuse in any way
        return False
    return isinstance(found, Tensor) and found.shape == (len(example), outputs)


def _put(module: nn.Module, names: list[str], layer: nn.Module) -> None:
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, layer)


def _outputs(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else int(getattr(layer, "out_channels", 0))


def _with_outputs(layer: nn.Module, outputs: int) -> nn.Module | None:
    """A layer like this one with other outputs; None if its groups do not divide them."""
    has_bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        made: nn.Module = nn.Linear(layer.in_features, outputs, has_bias)
    elif isinstance(layer, _CONVOLUTIONS) and outputs % layer.groups == 0:
        kind: Any = next(kind for kind in _CONVOLUTIONS if isinstance(layer, kind))
        made = kind(
            layer.in_channels,
            outputs,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            has_bias,
            layer.padding_mode,
        )
    else:
        return None
    return made.to(layer.weight).train(layer.training)
