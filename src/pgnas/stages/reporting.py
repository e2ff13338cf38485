"""What a report shows, read from the files of a run folder, whichever there are."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pgnas.architecture import Architecture
from pgnas.config import RunConfig
from pgnas.report import render_report
from pgnas.report.values import Row, section
from pgnas.run_folder import RunFolder
from pgnas.stages.context import HANDED_IN

REPORT_NAME = "report.html"


def render(folder: RunFolder, result: Mapping[str, Any], *, others: Mapping[str, RunFolder] | None = None) -> str:
    """The report of a run, finished or not, as HTML.

    Args:
        folder: The run.
        result: The fields of ``result.json`` known so far.
        others: Runs whose candidates are shown beside this one's, by the names to show.

    Raises:
        FileError: A file of the run is damaged.
        ArchitectureError: Its architecture is.
    """
    summary = found(folder, "supernet.json")
    chosen = found(folder, "architecture.json")
    if chosen is not None and isinstance(summary, dict):
        architecture = Architecture.from_json(chosen, subject=str(folder.file("architecture.json")))
        summary |= _what_is_kept(summary, architecture)
    environment = found(folder, "env.json")
    again = "\n".join(commands(folder)) or None
    more = {"settings": folder.config.given(), "environment": environment, "command": again}
    if section(result, "seconds"):
        more["seconds"] = _times(folder, section(result, "seconds"))
    return render_report(
        {**result, **more},
        folder.read_metrics(),
        folder.read_lines("candidates.jsonl"),
        summary,
        operations=found(folder, "operations.json"),
        reliability=found(folder, "reliability.json"),
        others={name: other.read_lines("candidates.jsonl") for name, other in (others or {}).items()},
    )


def _times(folder: RunFolder, known: Row) -> dict[str, object]:
    """Seconds a stage, with those that result.json, written before the last of them ends, does not have."""
    evaluation = "evaluate, with baselines" if folder.config.baseline else "evaluate"
    more = {evaluation: folder.stage_seconds("evaluate")}
    return {**known, **{name: seconds for name, seconds in more.items() if seconds > 0}}


def _what_is_kept(summary: Row, architecture: Architecture) -> dict[str, Any]:
    """The gates with their numbers of kept units, and of every choice the options that were chosen.

    A gate or choice that the architecture does not know, as in files of different runs, has nothing kept.
    """
    kept, gates, choices = architecture.kept, section(summary, "gates"), section(summary, "choices")
    options = {name: list(choices[name]) if isinstance(choices[name], list | dict) else [] for name in choices}
    return {
        "gates": {name: {**section(gates, name), "kept": len(kept.get(name, ()))} for name in gates},
        "chosen": {
            name: [known[unit] for unit in kept.get(name, ()) if unit < len(known)] for name, known in options.items()
        },
    }


def found(folder: RunFolder, name: str) -> Any:
    """The value of a JSON file of the run; None if there is none yet."""
    return folder.read_json(name, stage="search") if folder.file(name).exists() else None


def commands(folder: RunFolder) -> tuple[str, ...]:
    """The commands that begin the same run, or of a front's point its run and front; resuming takes the last of them.

    There are none if the network or the data were handed in as Python objects.
    """
    if folder.stage_done("start"):
        kept: Any = folder.stage_facts("start").get("commands", ())
        return tuple(map(str, kept))
    made = command(folder.config)
    return () if made is None else (made,)


def command(config: RunConfig) -> str | None:
    """The command that begins the same run; None if its network or data were handed in as Python objects."""
    if config.model.startswith(HANDED_IN) or config.data.startswith(HANDED_IN):
        return None
    words = ["pgnas", "run"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default or field.name in ("seed", "data_seed"):
            words += _flag(field.name, value)
    return shlex.join(words)


def _flag(name: str, value: object) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag]
    shown: Sequence[object] = value if isinstance(value, tuple) else (value,)
    return [flag, ",".join(map(str, shown))]
