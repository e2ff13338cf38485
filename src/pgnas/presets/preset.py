"""What a preset is."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pgnas.errors import ConfigError

Source = Literal["paper", "code", "ours"]
"""Where a value comes from: the paper's text, the code published with it, or us, where both are silent."""


@dataclass(frozen=True)
class Setting:
    """One setting's value in a preset.

    Attributes:
        value: The value.
        source: Where it comes from.
        note: What a reader should know about it.
    """

    value: object
    source: Source
    note: str = ""


@dataclass(frozen=True)
class Preset:
    """A named set of settings. Those that it does not name have their defaults.

    Attributes:
        name: As in ``--preset NAME``.
        summary: One line.
        settings: Setting by the name of its field in :class:`pgnas.config.RunConfig`.
        data: What it is made for, in words.
    """

    name: str
    summary: str
    settings: Mapping[str, Setting]
    data: str

    def values(self) -> dict[str, object]:
        """The settings' values, a layer for :func:`pgnas.config_file.make_config`."""
        return {name: setting.value for name, setting in self.settings.items()}


def preset_named(name: str, presets: Mapping[str, Preset]) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in presets:
        near = difflib.get_close_matches(name, presets, 1)
        remedy = f"did you mean {near[0]}?" if near else "see pgnas list presets"
        raise ConfigError("--preset", f"must be one of {', '.join(presets)}", value=repr(name), remedy=remedy)
    return presets[name]
