"""The reporter of a command."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from pgnas.console import NoteHandler, make_reporter
from pgnas.progress import Progress


@contextlib.contextmanager
def reporter() -> Iterator[Progress]:
    """A reporter that is closed in the end and shows what pgnas logs meanwhile."""
    made = make_reporter()
    handler = NoteHandler(made)
    logger = logging.getLogger("pgnas")
    logger.addHandler(handler)
    try:
        yield made
    finally:
        logger.removeHandler(handler)
        made.close()
