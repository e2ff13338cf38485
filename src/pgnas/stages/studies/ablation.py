"""``pgnas study ablation`` (Table 3, Figure 1): the full model, Random and PGNAS, without and with fine-tuning."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from pgnas.config import RunConfig
from pgnas.report.distributions import draw_histogram
from pgnas.stages.context import Context
from pgnas.stages.finetuning import FinetuneSettings
from pgnas.stages.redrawing import redraw
from pgnas.stages.studies.drawing import COLOURS
from pgnas.stages.studies.matching import matched_drop
from pgnas.stages.studies.measurements import Measurement, difference, verdict
from pgnas.stages.studies.plan import Cell, Settled, Study, Variant
from pgnas.stages.studies.reading import measure_cell

FULL, RANDOM, PGNAS = "full model", "Random, not fine-tuned", "PGNAS, not fine-tuned"
RANDOM_TUNED, PGNAS_TUNED = "Random, fine-tuned", "PGNAS, fine-tuned"
_NO_CAP = "leave it out: Random's rate is matched to the size that PGNAS finds by itself"


def _find_rate(context: Context) -> tuple[dict[str, object], str]:
    drop, params = matched_drop(context.posterior, seed=context.config.seed)
    note = f"the posterior expects {params:,.0f} parameters, as random networks do that drop {drop:.1%} of the channels"
    return {"fixed_drop": drop}, note


@dataclass(frozen=True)
class Ablation(Study):
    """Is it the posterior that finds good networks, or the supernet?

    Random (Bender et al. 2018) is the same supernet, trained in the same way but at one drop rate for all gates, at
    which networks have as many parameters in the mean as under PGNAS's posterior. The full model is trained in the
    same way with all gates open.

    Attributes:
        finetune: How the found networks are trained further; ``None``: they are not.
    """

    finetune: FinetuneSettings | None = None

    name: ClassVar[str] = "ablation"
    head: ClassVar[str] = "network"
    varied: ClassVar[Mapping[str, str]] = {
        "fixed_drop": "leave it out: the study finds Random's rate",
        "max_macs": _NO_CAP,
        "max_params": _NO_CAP,
        "max_latency": _NO_CAP,
    }

    @property
    def finetuning(self) -> FinetuneSettings | None:
        """As given."""
        return self.finetune

    def variants(self, base: RunConfig) -> Sequence[Variant]:
        """PGNAS first: its posterior says how large Random's networks shall be."""
        tunes = self.finetune is not None
        return (
            Variant("full", FULL, {"fixed_drop": 0.0, "candidates": 1}),
            Variant("pgnas", PGNAS, finetuned=PGNAS_TUNED if tunes else None),
            Variant(
                "random",
                RANDOM,
                {"fixed_drop": 0.5},
                settled=Settled("pgnas", ("fixed_drop",), _find_rate),
                finetuned=RANDOM_TUNED if tunes else None,
            ),
        )

    def measure(self, cell: Cell) -> Sequence[Measurement]:
        """A row each; the full model was not chosen among candidates."""
        rows = measure_cell(cell)
        if cell.variant.name == "full":
            return [Measurement(m.row, m.seed, {k: m.values[k] for k in ("params", "test_error")}) for m in rows]
        return rows

    def verdicts(self, measurements: Sequence[Measurement]) -> Sequence[str]:
        """Guided minus random."""
        subject = "PGNAS - Random, mean validation accuracy of all candidates, not fine-tuned"
        return [verdict(subject, difference(measurements, PGNAS, RANDOM, "mean_accuracy"))]

    def finish(self, cells: Mapping[str, Cell]) -> None:
        """Draw Figure 1 in PGNAS's report, too."""
        redraw(cells["pgnas"].path, against=[cells["random"].path])

    def draw(self, figure: Figure, measurements: Sequence[Measurement]) -> None:
        """Figure 1: the candidates of all seeds."""
        groups = {}
        for name, row in (("PGNAS", PGNAS), ("Random", RANDOM)):
            values = [accuracy for m in measurements if m.row == row for accuracy in m.accuracies]
            groups[f"{name}, mean {100 * statistics.fmean(values):.1f} %"] = values
        draw_histogram(figure, groups, styles=[(colour, "-") for colour in COLOURS])
