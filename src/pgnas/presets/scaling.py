"""A preset made small: one share, and what becomes of each setting.

With the share s:

* widths (``width``, ``filters``, ``growth``) become s times as wide, at least 8 (growth: 4);
* depths (``blocks``, ``cells``) s times as deep, at least one a stage;
* the side of the images becomes sqrt(s) times as long, at least 16 pixels (32 where the network's stem divides it by
  four), and the hole of cutout with it;
* the epochs become s^2 times as many, at least 2, and everything counted in epochs in the same proportion, so that the
  learning rate has the same shape;
* the candidates become s times as many, at least 16;
* N of the ELBO becomes what it is by default: the training images at hand, ten times as many if they are augmented.

All else (learning rates, batch, l^2, tau, ...) stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pgnas.amounts import parse_share
from pgnas.supernets import MODELS
from pgnas.supernets.registry import parse_parameters

LEAST_EPOCHS, LEAST_CANDIDATES = 2, 16
LEAST_SIDE, LEAST_SIDE_OF_STEM = 16, 32
_LEAST_WIDTHS = {"width": 8, "filters": 8, "growth": 4}
_DEPTHS = ("blocks", "cells")
_COUNTED_IN_EPOCHS = ("milestones", "restart_epochs", "warmup")


@dataclass(frozen=True)
class Change:
    """What became of a setting.

    Attributes:
        name: The setting.
        before: Its value in the preset.
        after: Its value now; ``None``: left to its default.
    """

    name: str
    before: object
    after: object


def parse_scale(text: str) -> float:
    """Read ``--scale 10%`` as a share in (0, 1).

    Raises:
        ConfigError: It is none.
    """
    return parse_share(text, subject="--scale", otherwise="not be given, for the full size")


def scaled(values: Mapping[str, object], share: float) -> dict[str, object]:
    """A preset's settings, shrunk by the rule of this module; the values handed in stay as they are.

    Args:
        values: Of :meth:`pgnas.presets.Preset.values`.
        share: s, in (0, 1).
    """
    found = dict(values)
    for name, value in values.items():
        if name in _RULES:
            found[name] = _RULES[name](value, share)
    if "image_size" in values:
        least = LEAST_SIDE_OF_STEM if "stem=7x7" in str(values["model"]) else LEAST_SIDE
        found["image_size"] = _at_least(least, 0.5)(values["image_size"], share)
    if "image_size" in values and "cutout" in values:
        ratio = _number(found["image_size"]) / _number(values["image_size"])
        found["cutout"] = round(_number(values["cutout"]) * ratio)
    if "epochs" in values:
        ratio = _number(found["epochs"]) / _number(values["epochs"])
        found |= {name: _times(values[name], ratio) for name in _COUNTED_IN_EPOCHS if name in values}
    found.pop("data_size", None)
    return found


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> list[Change]:
    """What the rule changed, setting by setting."""
    return [
        Change(name, value, after.get(name))
        for name, value in before.items()
        if name not in after or after[name] != value
    ]


def _model(spec: object, share: float) -> str:
    name, _, text = str(spec).partition(":")
    family = MODELS[name]
    parameters = parse_parameters(family, text)
    for key, least in _LEAST_WIDTHS.items():
        if key in parameters:
            parameters[key] = max(min(least, parameters[key]), round(parameters[key] * share))
    for key in _DEPTHS:
        if key in parameters:
            depths = [max(1, round(int(part) * share)) for part in str(parameters[key]).split("-")]
            parameters[key] = "-".join(map(str, depths))
    return f"{name}:" + ",".join(f"{key}={str(value).lower()}" for key, value in parameters.items())


def _at_least(least: int, power: float) -> Callable[[object, float], int]:
    def rule(value: object, share: float) -> int:
        number = _number(value)
        return int(min(number, max(least, round(number * share**power))))

    return rule


_RULES: dict[str, Callable[[object, float], object]] = {
    "model": _model,
    "epochs": _at_least(LEAST_EPOCHS, 2.0),
    "candidates": _at_least(LEAST_CANDIDATES, 1.0),
}


def _times(value: object, ratio: float) -> object:
    if isinstance(value, tuple):
        return tuple(part * ratio for part in value)
    return _number(value) * ratio


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    assert math.isfinite(value)
    return value
