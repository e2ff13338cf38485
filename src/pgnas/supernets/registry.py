"""The registered networks: names, descriptions, parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from pgnas.errors import ModelError

Factory = Callable[..., nn.Module]
Ties = Callable[[nn.Module], tuple[tuple[str, ...], ...]]
"""From a built network to the lists of its layers that share a gate."""
MODELS: dict[str, RegisteredModel] = {}
_FLAGS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class RegisteredModel:
    """A family of networks that ``--model name:key=value,...`` builds.

    Attributes:
        name: The name after ``--model``.
        description: One line for ``pgnas list models``.
        factory: Called with ``in_channels``, ``num_classes`` and the family's own keyword parameters.
        width: The parameter that scales all channels, if the family has one (the ``uniform`` baseline needs it).
        image_size: Side in pixels of the images that the family is made for.
        frames: Frames of the clips that it is made for; None for images.
        ties: What a search of the family ties by itself; None: nothing.
    """

    name: str
    description: str
    factory: Factory
    width: str | None = None
    image_size: int = 32
    frames: int | None = None
    ties: Ties | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """The family's own parameters and their defaults."""
        signature = inspect.signature(self.factory)
        return {
            name: p.default for name, p in signature.parameters.items() if name not in ("in_channels", "num_classes")
        }


def register(
    name: str,
    description: str,
    *,
    width: str | None = None,
    image_size: int = 32,
    frames: int | None = None,
    ties: Ties | None = None,
) -> Callable[[Factory], Factory]:
    """Register a factory of networks under ``name``."""

    def add(factory: Factory) -> Factory:
        MODELS[name] = RegisteredModel(name, description, factory, width, image_size, frames, ties)
        return factory

    return add


def parse_parameters(model: RegisteredModel, text: str) -> dict[str, Any]:
    """Read ``"width=32,blocks=1"`` with the types of the family's defaults.

    Raises:
        ModelError: A parameter is unknown, or its value is of another type.
    """
    defaults = model.parameters
    found: dict[str, Any] = {}
    for part in text.split(",") if text else []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in defaults or not equals:
            raise ModelError(
                f"--model {model.name}",
                f"takes the parameters {', '.join(defaults)}",
                value=repr(part),
                remedy=f"write for example {model.name}:" + ",".join(f"{k}={v}" for k, v in list(defaults.items())[:2]),
            )
        kind = type(defaults[key])
        try:
            found[key] = _FLAGS[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError) as error:
            raise ModelError(
                f"--model {model.name} parameter {key}",
                f"must be of type {kind.__name__}",
                value=repr(value),
                remedy=f"its default is {defaults[key]}",
            ) from error
    return found
