"""The ledger of finished stages: ``stages.json``, with the seconds each has taken over all interrupted sessions."""

from __future__ import annotations

import json
from pathlib import Path

from pgnas.errors import RunFolderError
from pgnas.run_folder.storage import to_json, write_bytes


class Ledger:
    """Which stages of a run are done, in the order in which they began.

    Args:
        path: The file; none is an empty ledger.

    Raises:
        RunFolderError: The file is not a ledger.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stages: dict[str, dict[str, object]] = _read(path) if path.exists() else {}

    def done(self, stage: str) -> bool:
        """Whether ``stage`` has been finished."""
        return self._stages.get(stage, {}).get("done") is True

    def seconds(self, stage: str) -> float:
        """The seconds that ``stage`` has taken so far."""
        seconds = self._stages.get(stage, {}).get("seconds", 0.0)
        return float(seconds) if isinstance(seconds, int | float) else 0.0

    def facts(self, stage: str) -> dict[str, object]:
        """What was recorded when ``stage`` was finished."""
        facts = self._stages.get(stage, {}).get("facts", {})
        return dict(facts) if isinstance(facts, dict) else {}

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Count the seconds of a part of ``stage``."""
        self._update(stage, seconds=self.seconds(stage) + seconds)

    def mark_done(self, stage: str, seconds: float, facts: dict[str, object]) -> None:
        """Record the end of ``stage``; ``seconds`` are those not yet counted."""
        self._update(stage, done=True, seconds=self.seconds(stage) + seconds, facts=facts)

    def forget_from(self, stage: str) -> None:
        """Forget ``stage`` and every stage that began after it."""
        names = list(self._stages)
        if stage in names:
            self._write({name: self._stages[name] for name in names[: names.index(stage)]})

    def _update(self, stage: str, **entries: object) -> None:
        before = self._stages.get(stage, {"done": False})
        self._write(self._stages | {stage: before | entries})

    def _write(self, stages: dict[str, dict[str, object]]) -> None:
        write_bytes(self._path, (to_json(stages, indent=2) + "\n").encode())
        self._stages = stages


def _read(path: Path) -> dict[str, dict[str, object]]:
    try:
        stages = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(
            str(path), "must be readable JSON", value=error, remedy="delete it to begin the stages again"
        ) from error
    if not isinstance(stages, dict) or not all(isinstance(entry, dict) for entry in stages.values()):
        raise RunFolderError(str(path), "must map stages to their records", remedy="delete it to begin them again")
    return stages
