"""``pgnas.inspect``: what of a network would be gated, before any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgnas.errors import ModelError
from pgnas.nn import Supernet, supernet
from pgnas.nn.inspection import Inspection, inspect_supernet
from pgnas.run_folder.tensors import load_tensors
from pgnas.supernets import MODELS, BuiltModel, build_model, load_weights

IMAGE_SIZE, CHANNELS, CLASSES = 224, 3, 1000
_MOST = 65_536  # pixels a side, channels, classes: beyond it is a slip of the keyboard


def inspect(
    model: str | nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    *,
    image_size: int | None = None,
    frames: int | None = None,
    in_channels: int | None = None,
    classes: int | None = None,
    weights: str | None = None,
    exclude: Sequence[str] = (),
    tie: Sequence[Sequence[str]] = (),
    gate_inputs: bool = False,
    channels_per_gate: int = 1,
) -> Inspection:
    """What a search of ``model`` would work on: gates and their sources, barriers, costs. Nothing is trained.

    ``print(pgnas.inspect(model, images))`` is short; ``pgnas inspect --model NAME`` prints it all as tables.

    Args:
        model: A network, a supernet, or a name as ``--model`` of ``pgnas run`` takes it.
        example_inputs: For a network: a tensor (B, C, ...) or a tuple of such.
        image_size: For a name: side of the images in pixels; ``None``: 224, or what a registered family is made for.
        frames: For a name: frames of a clip; ``None``: images, or what a registered family is made for.
        in_channels: For a name: channels of the images; ``None``: 3.
        classes: For a name: classes; ``None``: 1000.
        weights: For a name: a ``.safetensors`` file, to see whether it fits.
        exclude: As in :func:`pgnas.supernet`.
        tie: As in :func:`pgnas.supernet`; a registered family may tie layers by itself.
        gate_inputs: As in :func:`pgnas.supernet`.
        channels_per_gate: As in :func:`pgnas.supernet`.

    Raises:
        ModelError: There is no such network, it does not run on such inputs, or nothing in it can be gated.
    """
    by_name: dict[str, Any] = {"image_size": image_size, "frames": frames, "in_channels": in_channels}
    by_name |= {"classes": classes, "weights": weights}
    found: nn.Module
    if isinstance(model, str):
        if example_inputs is not None:
            raise ModelError("example_inputs", "go with a network", value=f"{model!r}", remedy="pass image_size")
        built, example_inputs, notes = _by_name(model, **by_name)
        found, name, tie = built.module, model, [*built.ties_without(exclude), *tie]
    else:
        given = [key for key, value in by_name.items() if value is not None]
        if given:
            raise ModelError(given[0], "goes with a name", value=type(model).__name__, remedy="pass example_inputs")
        found, notes, name = model, (), type(model).__name__
    if isinstance(found, Supernet):
        return inspect_supernet(found, model=type(found.graph.trace.module).__name__, params=_params(found.body))
    if example_inputs is None:
        raise ModelError(f"model {name}", "needs example_inputs", remedy="pass one batch of what it reads")
    made = supernet(
        found, example_inputs, exclude=exclude, tie=tie, gate_inputs=gate_inputs, channels_per_gate=channels_per_gate
    )
    return inspect_supernet(made, model=name, params=_params(found), notes=notes)


def _by_name(
    spec: str,
    *,
    image_size: int | None,
    frames: int | None,
    in_channels: int | None,
    classes: int | None,
    weights: str | None,
) -> tuple[BuiltModel, Tensor, tuple[str, ...]]:
    """The network that ``spec`` names, one batch of what it reads, and notes."""
    family = MODELS.get(spec.partition(":")[0])
    natural = IMAGE_SIZE if family is None else family.image_size
    side = _positive("--image-size", natural if image_size is None else image_size)
    channels = _positive("--in-channels", CHANNELS if in_channels is None else in_channels)
    outputs = _positive("--classes", CLASSES if classes is None else classes)
    if frames is None:
        frames = None if family is None else family.frames
    shape = (side, side) if frames is None else (_positive("--frames", frames), side, side)
    built = build_model(spec, in_channels=channels, num_classes=outputs, image_size=shape, seed=0)
    notes = list(built.notes)
    if weights is not None:
        tensors, _ = load_tensors(Path(weights))
        notes += load_weights(built.module, tensors, source=weights, replaced=built.head)
    generator = torch.Generator().manual_seed(0)  # not the global one: nothing of the caller's changes
    return built, torch.randn(2, built.in_channels, *shape, generator=generator), tuple(notes)


def _positive(flag: str, value: int) -> int:
    if not 1 <= value <= _MOST:
        raise ModelError(flag, f"must lie in [1, {_MOST}]", value=value, remedy="choose a value inside")
    return value


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
