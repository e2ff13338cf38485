"""Weights from safetensors files: starting ones by name, and the states of our own networks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pgnas.errors import FileError

_REMEDY = "use weights of this model"


@torch.no_grad()
def load_weights(
    module: nn.Module, tensors: Mapping[str, Tensor], *, source: str, replaced: str | None = None
) -> list[str]:
    """Copy tensors into a network by name.

    Args:
        module: The network (ours; it is changed).
        tensors: Name to value.
        source: Where they come from, for messages.
        replaced: The classifier that was replaced: its tensors may have other shapes and are then left out.

    Returns:
        Notes: what the file lacked and what was left out.

    Raises:
        FileError: There is no tensor, or one has no place in the network, another shape or numbers that are not finite.
    """
    places = module.state_dict()
    left_out = []
    if not tensors:
        raise FileError(source, "must hold the weights of the model", value="no tensors", remedy=_REMEDY)
    for name, value in tensors.items():
        place = places.get(name)
        if value.is_complex() or not value.float().isfinite().all():
            raise FileError(
                f"{source}: tensor {name!r}", "must hold finite real numbers", value="others too", remedy=_REMEDY
            )
        if place is not None and place.shape == value.shape:
            place.copy_(value)
        elif replaced is not None and name.startswith(replaced + ".") and place is not None:
            left_out.append(name)
        else:
            raise FileError(
                f"{source}: tensor {name!r}",
                "must be one of the network's" if place is None else f"must have shape {tuple(place.shape)}",
                value="no such name there" if place is None else str(tuple(value.shape)),
                remedy=_REMEDY,
            )
    missing = [n for n in places if n not in tensors and not n.endswith("num_batches_tracked")]
    notes = []
    if left_out:
        notes.append(f"{source}: the old classifier's {', '.join(left_out)} left out")
    if missing:
        notes.append(f"{source} lacks {len(missing)} tensors, which start at random: {', '.join(missing[:3])} ...")
    return notes


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Give a network of ours (it is changed) the whole state that was saved of it.

    Args:
        module: The network.
        tensors: Name to value.
        source: The file that they come from, for the error.

    Raises:
        FileError: They are the state of another network: names or shapes differ.
    """
    places = module.state_dict()
    remedy = "restore the file, or repeat the stage that wrote it"
    for name in sorted(set(places) ^ set(tensors)):
        lack = "no such tensor there" if name in places else "a tensor of another network"
        raise FileError(f"{source}: tensor {name!r}", "must be the network's", value=lack, remedy=remedy)
    for name, place in places.items():
        if place.shape != tensors[name].shape:
            rule, found = f"must have shape {tuple(place.shape)}", tuple(tensors[name].shape)
            raise FileError(f"{source}: tensor {name!r}", rule, value=found, remedy=remedy)
    module.load_state_dict(dict(tensors))
