"""``pgnas study weight-term``: the weight term of Eq. 15 against a constant L2 decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from pgnas.config import RunConfig
from pgnas.errors import ConfigError
from pgnas.stages.context import Context
from pgnas.stages.studies.drawing import draw_rows
from pgnas.stages.studies.measurements import Measurement, difference, verdict
from pgnas.stages.studies.plan import Cell, Settled, Study, Variant
from pgnas.stages.studies.reading import measure_cell

COUPLED, CONSTANT = "π l² |m|² (Eq. 15)", "constant L2"


def _find_decay(context: Context) -> tuple[dict[str, object], str]:
    decay = context.recipe.found_weight_decay
    return {"weight_decay": decay}, f"its weight term at π = 1 is a weight decay of {decay:.3g}"


@dataclass(frozen=True)
class WeightTerm(Study):
    """Does it matter that the weight term is scaled by the keep probability?

    The constant variant has the same KL without the weight term, -H(pi): that of a Bernoulli prior with u = 1/2, up to
    a constant. In its place all kernels decay at one rate, gated or not.

    Attributes:
        decay: That rate; ``None``: 2 l^2 / N, which is what the weight term amounts to at pi = 1.
    """

    decay: float | None = None

    name: ClassVar[str] = "weight-term"
    head: ClassVar[str] = "weight term"
    varied: ClassVar[Mapping[str, str]] = {
        "prior": "leave it out: the weight term is the paper prior's",
        "weight_decay": "use --decay for the constant variant",
        "fixed_drop": "leave it out",
        "max_macs": "leave it out: the study is about the paper prior, which has no cap",
        "max_params": "leave it out: the study is about the paper prior, which has no cap",
        "max_latency": "leave it out: the study is about the paper prior, which has no cap",
    }

    def __post_init__(self) -> None:
        if self.decay is not None and not 0 <= self.decay <= 1_000:
            raise ConfigError("--decay", "must lie in [0, 1000]", value=self.decay, remedy="choose a value inside")

    def variants(self, base: RunConfig) -> Sequence[Variant]:
        """Both; what the paper prior implies by default is the same in both."""
        same = {"temperature": base.temperature or 0.2, "initial_drop": base.initial_drop or 0.1}
        constant = {**same, "prior": "bernoulli", "prior_drop": 0.5, "weight_decay": self.decay or 0.0}
        settled = Settled("coupled", ("weight_decay",), _find_decay) if self.decay is None else None
        return (
            Variant("coupled", COUPLED, {**same, "prior": "paper", "weight_decay": None}),
            Variant("constant", CONSTANT, constant, settled=settled),
        )

    def measure(self, cell: Cell) -> Sequence[Measurement]:
        """A row each."""
        return measure_cell(cell)

    def verdicts(self, measurements: Sequence[Measurement]) -> Sequence[str]:
        """Coupled minus constant."""
        subject = f"{COUPLED} - {CONSTANT}, "
        return [
            verdict(subject + "test error", difference(measurements, COUPLED, CONSTANT, "test_error")),
            verdict(
                subject + "mean validation accuracy of all candidates",
                difference(measurements, COUPLED, CONSTANT, "mean_accuracy"),
            ),
        ]

    def draw(self, figure: Figure, measurements: Sequence[Measurement]) -> None:
        """Test error and size."""
        draw_rows(figure, measurements, head=self.head)
