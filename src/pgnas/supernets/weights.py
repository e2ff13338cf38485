"""Starting weights from a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pgnas.errors import FileError


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
        FileError: A tensor has no place in the network, or another shape.
    """
    places = module.state_dict()
    left_out = []
    for name, value in tensors.items():
        place = places.get(name)
        if place is not None and place.shape == value.shape:
            place.copy_(value)
        elif replaced is not None and name.startswith(replaced + ".") and place is not None:
            left_out.append(name)
        else:
            raise FileError(
                f"{source}: tensor '{name}'",
                "must be one of the network's" if place is None else f"must have shape {tuple(place.shape)}",
                value="no such name there" if place is None else str(tuple(value.shape)),
                remedy="use weights of this model",
            )
    missing = [n for n in places if n not in tensors and not n.endswith("num_batches_tracked")]
    notes = []
    if left_out:
        notes.append(f"{source}: the old classifier's {', '.join(left_out)} left out")
    if missing:
        notes.append(f"{source} lacks {len(missing)} tensors, which start at random: {', '.join(missing[:3])} ...")
    return notes
