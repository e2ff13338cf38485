"""Settings as TOML: what ``--config`` reads and what a run folder keeps.

The keys are the fields of :class:`~pgnas.config.RunConfig`, at the top level of the file.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path

import tomli_w

from pgnas import setting_types
from pgnas.config import RunConfig, field_hints, field_names
from pgnas.errors import ConfigError

_REQUIRED = tuple(field.name for field in dataclasses.fields(RunConfig) if field.default is dataclasses.MISSING)
_MOST_BYTES = 2**15  # far more than settings take; the parser's time grows with the square of a key's length


def read_settings(path: Path) -> dict[str, object]:
    """The settings in a TOML file, checked for names and types; a file need not hold all of them.

    Raises:
        ConfigError: The file cannot be read, is not TOML, or holds an unknown name or a value of the wrong type.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # of a path with a zero byte in it
        value = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            str(path), "must be a readable file", value=value, remedy="check the path given to --config"
        ) from error
    if len(data) > _MOST_BYTES:
        remedy = "check the path given to --config"
        raise ConfigError(str(path), f"must be at most {_MOST_BYTES:,} bytes long", value="more", remedy=remedy)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), "must be UTF-8 text", value=str(error), remedy="save it as UTF-8") from error
    return parse_settings(text, subject=str(path))


def parse_settings(text: str, *, subject: str) -> dict[str, object]:
    """The settings in TOML ``text``; errors name ``subject`` as their place.

    Raises:
        ConfigError: As :func:`read_settings`.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of numbers with too many digits, and of tables in tables
        raise ConfigError(subject, "must be valid TOML", value=str(error), remedy="correct that line") from error
    return {name: _checked(name, value, subject) for name, value in table.items()}


def make_config(*layers: Mapping[str, object], subject: str = "pgnas run") -> RunConfig:
    """A run's settings from layers of settings, a later one winning; the defaults lie below all.

    A setting also wins over a lower layer's that it cannot stand beside: ``budget`` over ``epochs`` and the reverse,
    and a schedule without milestones over these.

    Raises:
        ConfigError: A required setting is in no layer, or a value breaks a rule.
    """
    merged: dict[str, typing.Any] = {}
    for layer in layers:
        for name, other in (("budget", "epochs"), ("epochs", "budget")):
            if layer.get(name) is not None:
                merged.pop(other, None)
        if layer.get("schedule", "multistep") != "multistep":
            merged.pop("milestones", None)
        merged |= layer
    missing = [name for name in _REQUIRED if name not in merged]
    if missing:
        flags = ", ".join("--" + name for name in missing)
        raise ConfigError(
            subject, f"needs {flags}", remedy=f"give {'them as flags' if len(missing) > 1 else 'it'} or set in a TOML"
        )
    return RunConfig(**merged)


def format_settings(config: RunConfig) -> str:
    """``config`` as TOML; settings that are ``None`` are left out."""
    given = config.given().items()
    return tomli_w.dumps({name: list(value) if isinstance(value, tuple) else value for name, value in given})


def _checked(name: str, value: object, subject: str) -> object:
    hints = field_hints()
    if name not in hints:
        close = difflib.get_close_matches(name.replace("-", "_"), field_names(), n=1)
        remedy = f"did you mean {close[0]}?" if close else f"the settings are {', '.join(field_names())}"
        raise ConfigError(subject, "must hold known settings only", value=repr(name), remedy=remedy)
    found = setting_types.strict(value, hints[name])
    if found is None:
        rule = f"must be {setting_types.described(hints[name])}"
        raise ConfigError(f"{subject}: {name}", rule, value=repr(value), remedy="correct that line")
    return found
