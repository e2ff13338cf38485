"""The command ``pgnas``: a thin client of the library."""

from __future__ import annotations

from pgnas.cli.main import main

__all__ = ["main"]
