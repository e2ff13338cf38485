"""``pgnas study length-scale`` and ``temperature``: one setting takes several values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from pgnas.amounts import require_different
from pgnas.config import RunConfig
from pgnas.stages.studies.drawing import draw_rows
from pgnas.stages.studies.measurements import Measurement
from pgnas.stages.studies.plan import Cell, Study, Variant
from pgnas.stages.studies.reading import measure_cell


@dataclass(frozen=True)
class Sweep(Study):
    """A run for each value of one setting.

    Attributes:
        values: The values.
    """

    values: tuple[float, ...]

    setting: ClassVar[str]
    symbol: ClassVar[str]
    needed: ClassVar[Mapping[str, object]] = {}

    def __post_init__(self) -> None:
        require_different("--values", self.values, name=_written)

    def variants(self, base: RunConfig) -> Sequence[Variant]:
        """One a value."""
        return [
            Variant(
                f"{self.name}-{_written(value)}",
                f"{self.symbol} = {_written(value)}",
                {**self.needed, self.setting: value},
            )
            for value in self.values
        ]

    def measure(self, cell: Cell) -> Sequence[Measurement]:
        """A row a value."""
        return measure_cell(cell)

    def draw(self, figure: Figure, measurements: Sequence[Measurement]) -> None:
        """Test error and size by value."""
        draw_rows(figure, measurements, head=self.head)


class LengthScale(Sweep):
    """How strongly l^2 of the paper prior (Eq. 15) makes networks small."""

    name = "length-scale"
    head = "length scale"
    setting, symbol = "length_scale_sq", "l²"
    needed: ClassVar[Mapping[str, object]] = {"prior": "paper"}
    varied: ClassVar[Mapping[str, str]] = {
        "length_scale_sq": "use --values",
        "prior": "leave it out: the length scale is the paper prior's",
        "fixed_drop": "leave it out: a fixed rate does not depend on the length scale",
    }


class Temperature(Sweep):
    """What tau of the relaxation (Eq. 16) is good for."""

    name = "temperature"
    head = "temperature"
    setting, symbol = "temperature", "τ"
    varied: ClassVar[Mapping[str, str]] = {"temperature": "use --values"}


def _written(value: float) -> str:
    return f"{value:g}"
