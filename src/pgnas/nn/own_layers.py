"""Layer types and functions for which a user registered a channel rule: they stay whole in the traced graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from pgnas.nn.cut import Cut

CutFunction = Callable[[Any, Tensor, Tensor], "Cut"]


@dataclass(frozen=True)
class OwnLayer:
    """How layers of a registered type are cut.

    Attributes:
        kind: The registered type.
        axis: The axis of its input on which the layer works; None for any, or for 1 if it has tensors of its own.
        cut: The cut, if the user gave one.
        cut_axes: Parameter or buffer to its channel axis; None: the first, where it is as long as there are channels.
        attributes: Attributes that hold the number of (output) channels.
    """

    kind: type[nn.Module]
    axis: int | None = None
    cut: CutFunction | None = None
    cut_axes: Mapping[str, int] | None = None
    attributes: tuple[str, ...] = ()


OWN_LAYERS: dict[type[nn.Module], OwnLayer] = {}
OWN_FUNCTIONS: list[Callable[..., Any]] = []


def own_layer(layer: nn.Module) -> OwnLayer | None:
    """The registration that holds for a layer: that of the nearest registered class whose forward the layer has."""
    kind = next((kind for kind in type(layer).__mro__ if kind in OWN_LAYERS), None)
    if kind is None or type(layer).forward is not kind.forward:
        return None  # the rule speaks of another forward
    return OWN_LAYERS[kind]
