"""``pgnas study candidates``: what it brings to draw more candidates, from one ranking of the largest number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from matplotlib.figure import Figure
from torch import nn

from pgnas.amounts import require_different
from pgnas.config import RunConfig
from pgnas.errors import ConfigError
from pgnas.nn import extract_small
from pgnas.progress import SilentReporter
from pgnas.run_folder import RunFolder
from pgnas.stages.candidates import Candidate, best
from pgnas.stages.context import Context
from pgnas.stages.studies.drawing import draw_rows
from pgnas.stages.studies.measurements import Measurement
from pgnas.stages.studies.plan import Cell, Study, Variant
from pgnas.stages.studies.reading import CellFiles, accuracies_of, candidate_values, samples

WINNERS_NAME = "winners.json"
"""In a cell's folder: test errors by digest."""


@dataclass(frozen=True)
class CandidateCounts(Study):
    """The best of the first C candidates, for several C: candidates are drawn in one order, so that no run is repeated.

    Attributes:
        values: The numbers C.
    """

    values: tuple[int, ...]

    name: ClassVar[str] = "candidates"
    head: ClassVar[str] = "candidates"
    varied: ClassVar[Mapping[str, str]] = {
        "candidates": "use --values",
        "decide_at": "leave it out: candidates are compared as they are drawn, so none is trained further",
    }

    def __post_init__(self) -> None:
        require_different("--values", self.values)
        if min(self.values) < 1:
            raise ConfigError("--values", "must be 1 or more", value=min(self.values), remedy="drop it")

    def variants(self, base: RunConfig) -> Sequence[Variant]:
        """One, with as many candidates as the largest number."""
        return [Variant("ranked", self.head, {"candidates": max(self.values), "decide_at": "never"})]

    def measure(self, cell: Cell) -> Sequence[Measurement]:
        """A row a number; a posterior with fewer architectures has fewer candidates."""
        drawn = CellFiles.read(cell).candidates
        winners = {count: best(drawn[:count], by=cell.config.rank_by) for count in self.values}
        errors = _test_errors(cell, list(winners.values()))
        return [
            Measurement(
                f"C = {count:,}",
                cell.config.seed,
                {"params": float(winner.counts.params), "test_error": errors[winner.architecture.digest]}
                | candidate_values(drawn[:count]),
                accuracies_of(samples(drawn[:count])),
            )
            for count, winner in winners.items()
        ]

    def draw(self, figure: Figure, measurements: Sequence[Measurement]) -> None:
        """Test error and size by C."""
        draw_rows(figure, measurements, head=self.head)


def _test_errors(cell: Cell, winners: Sequence[Candidate]) -> dict[str, float]:
    """The test error of each winner with the supernet's weights, by digest; those measured before are looked up."""
    with RunFolder.open(cell.path) as folder:
        known: Any = folder.read_json(WINNERS_NAME, stage="study") if folder.file(WINNERS_NAME).exists() else {}
        missing = {w.architecture.digest: w for w in winners if w.architecture.digest not in known}
        if missing:
            known |= _measured(folder, missing)
            folder.write_json(WINNERS_NAME, known)
    return {digest: float(error) for digest, error in known.items()}


def _measured(folder: RunFolder, winners: dict[str, Candidate]) -> dict[str, float]:
    context = Context(folder, SilentReporter())
    calibration = context.ranking_calibration()
    score = context.recipe.scorer(context.held_out(context.data.test), calibration)

    def extracted(winner: Candidate) -> nn.Module:
        return extract_small(context.posterior, winner.architecture, re_estimated=calibration is not None).module

    return {digest: 1 - score(extracted(winner)).metric for digest, winner in winners.items()}
