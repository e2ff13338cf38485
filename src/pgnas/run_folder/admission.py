"""Which folders may be a run's: absent, empty, or holding the same run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pgnas.config import RunConfig, field_names
from pgnas.config_file import make_config, parse_settings
from pgnas.errors import ConfigError, RunFolderError
from pgnas.run_folder import storage
from pgnas.run_folder.lock import LOCK_NAME

CONFIG_NAME = "config.toml"
OTHER_SETTINGS = "holds a run with other settings"
"""The rule that a folder breaks whose run has other settings."""
_BEFORE = {"streams": "off"}
"""Settings that folders of earlier versions do not name, and what was done then."""


def make(path: Path) -> None:
    """Make the folder, or find it made.

    Raises:
        RunFolderError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"--out {path}", "must be a folder that can be made", value=error.strerror, remedy="choose another --out"
        ) from error


def refuse_foreign(path: Path) -> None:
    """Only an empty folder may become a run; our lock and a killed beginning do not count.

    Raises:
        RunFolderError: The folder holds something that is not ours.
    """
    if (path / CONFIG_NAME).exists():
        return
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise RunFolderError(
            f"--out {path}", "must be readable", value=error.strerror, remedy="choose another --out"
        ) from error
    foreign = [name for name in names if name != LOCK_NAME and not name.startswith(storage.TEMPORARY_PREFIX)]
    if foreign:
        raise RunFolderError(
            f"--out {path}",
            "must be empty or hold a run",
            value=f"a folder with {foreign[0]}" + (f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""),
            remedy="choose another --out; nothing was touched",
        )


def read_config(path: Path) -> RunConfig:
    """The settings of the run in ``path``; ``out`` is ``path``, wherever the folder has been moved.

    Raises:
        RunFolderError: They are missing or damaged.
    """
    file = path / CONFIG_NAME
    try:
        settings = parse_settings(file.read_text(encoding="utf-8"), subject=str(file))
        return make_config(_BEFORE, settings, {"out": str(path)}, subject=str(file))
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        raise RunFolderError(
            str(path), "must hold the settings of a run", value=str(error), remedy="choose another --out"
        ) from error


def require_same(path: Path, there: RunConfig, now: RunConfig) -> None:
    """Refuse to go on with a run under other settings; where it is (``out``) does not count.

    Raises:
        RunFolderError: The settings differ; the first three that do are named.
    """
    before, after = ({**dataclasses.asdict(config), "lr": config.peak_lr} for config in (there, now))
    names = [name for name in field_names() if name != "out" and before[name] != after[name]]
    if names:
        shown = [f"{name}: {_shown(before[name])} there, {_shown(after[name])} now" for name in names[:3]]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise RunFolderError(
            f"--out {path}",
            OTHER_SETTINGS,
            value="; ".join(shown) + more,
            remedy="choose another --out, or repeat the settings to resume",
        )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return "unset" if value is None else str(value)
