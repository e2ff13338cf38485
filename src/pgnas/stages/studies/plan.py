"""What a study is made of: variants of one run, each with several seeds, and what is read from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from matplotlib.figure import Figure

from pgnas.config import RunConfig
from pgnas.stages.context import Context
from pgnas.stages.finetuning import FinetuneSettings
from pgnas.stages.studies.measurements import Measurement

Settings = Mapping[str, object]


@dataclass(frozen=True)
class Settled:
    """Settings that depend on a finished run of the same seed.

    Attributes:
        reference: The variant of that run.
        names: The settings' names.
        find: The settings, from that run, and what to say about them.
    """

    reference: str
    names: tuple[str, ...]
    find: Callable[[Context], tuple[dict[str, object], str]]


@dataclass(frozen=True)
class Variant:
    """One way to do the run.

    Attributes:
        name: Of its cells' folders: ``NAME-seed0``.
        title: Its row in the table.
        settings: What differs from the study's settings. Those of ``settled`` stand in until they are known.
        settled: Settings that depend on another variant, which comes before this one.
        finetuned: The title of the row of its found network after fine-tuning; ``None``: it is not fine-tuned.
    """

    name: str
    title: str
    settings: Settings = field(default_factory=dict)
    settled: Settled | None = None
    finetuned: str | None = None


@dataclass(frozen=True)
class Cell:
    """A finished run of a study.

    Attributes:
        variant: What it is a run of.
        config: Its settings.
    """

    variant: Variant
    config: RunConfig

    @property
    def path(self) -> Path:
        """Its run folder."""
        return Path(self.config.out)


class Study(ABC):
    """A table of the paper as a set of runs.

    Attributes:
        name: As in ``pgnas study NAME``.
        head: What its rows are.
        varied: Settings that the study decides, by the flag or reason that says what to do instead.
    """

    name: ClassVar[str]
    head: ClassVar[str]
    varied: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def variants(self, base: RunConfig) -> Sequence[Variant]:
        """The variants, given the settings that they have in common.

        Raises:
            ConfigError: The study cannot be done with these settings.
        """

    @property
    def finetuning(self) -> FinetuneSettings | None:
        """How found networks are trained further; ``None``: they are not."""
        return None

    @abstractmethod
    def measure(self, cell: Cell) -> Sequence[Measurement]:
        """The rows to which a finished cell contributes."""

    def finish(self, cells: Mapping[str, Cell]) -> None:
        """What else is to be done once all cells of a seed are; by variant."""
        return

    def verdicts(self, measurements: Sequence[Measurement]) -> Sequence[str]:
        """What follows from the table, a line each."""
        return ()

    @abstractmethod
    def draw(self, figure: Figure, measurements: Sequence[Measurement]) -> None:
        """Draw the study's figure."""
