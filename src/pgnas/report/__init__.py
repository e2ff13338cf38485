"""A run as people read it: from the values that a run folder holds to one HTML file that needs nothing else."""

from __future__ import annotations

from pgnas.report.document import headline, render_report

__all__ = ["headline", "render_report"]
