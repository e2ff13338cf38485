"""The run folder ``runs/<name>/``: everything a run reads back or hands over, written so that a kill loses nothing.

folder = RunFolder.create_or_resume(config)
if not folder.stage_done("search"):
    state = folder.load_checkpoint("search")  # None: from the beginning
    ...
    folder.save_checkpoint("search", {"model": model.state_dict(), "epoch": epoch}, step=epoch)
    folder.mark_done("search", seconds)
"""

from __future__ import annotations

from pgnas.run_folder.admission import OTHER_SETTINGS
from pgnas.run_folder.folder import RunFolder
from pgnas.run_folder.lock import is_locked
from pgnas.run_folder.shared import SharedFolder

__all__ = ["OTHER_SETTINGS", "RunFolder", "SharedFolder", "is_locked"]
