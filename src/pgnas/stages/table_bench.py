"""What the benchmarks on NATS-Bench's tables share: a search a cap and seed, a row each, one file of results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pgnas.amounts import require_different
from pgnas.architecture import Architecture
from pgnas.config import Precision, RunConfig
from pgnas.errors import told_under
from pgnas.progress import Progress
from pgnas.run_folder.storage import read_json, to_json, write_bytes
from pgnas.stages.pipeline import run


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """The settings of a benchmark: the same for every cap and every data set.

    Attributes:
        data: What ``--data`` of ``pgnas run`` takes.
        table: The table, an ``.npz`` file.
        out: A folder for the runs and ``results.json``; a rerun takes up where it was.
        caps: Caps on the flops, as shares of the largest network's.
        seeds: A search each.
        image_size: Side of the images in the search; ``None``: as they are.
        candidates: Architectures ranked.
        precision: Number format of the forward pass.
    """

    data: str
    table: Path
    out: Path
    caps: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    image_size: int | None = 16
    candidates: int = 64
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        require_different("--caps", self.caps, name=_bare)
        require_different("--seeds", self.seeds)

    def run_folder(self, cap: str, seed: int) -> str:
        """Where one search works."""
        return str(self.out / f"cap{_bare(cap)}-seed{seed}")


def _bare(cap: str) -> str:
    return cap.strip().rstrip("%").strip()


def check_each(settings: BenchSettings, config: Callable[[str, int], object]) -> None:
    """Make the settings of every search, before the first one begins.

    Raises:
        ConfigError: One breaks a rule; a seed does so under the flag that lists it.
    """
    for cap in settings.caps:
        for seed in settings.seeds:
            with told_under("--seeds", instead_of="--seed"):
                config(cap, seed)


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


S = TypeVar("S", bound=BenchSettings)
F = TypeVar("F", bound=_Dataclass)
R = TypeVar("R", bound=_Dataclass)


class Finding(Protocol):
    """What one search found: at least the accuracy, from the table, under a cap."""

    @property
    def cap(self) -> str:
        """The cap, as it was written."""

    @property
    def accuracy(self) -> float:
        """What the network found achieved."""


def accuracies(findings: Iterable[Finding], cap: str) -> list[float]:
    """The true accuracies found under one cap."""
    return [finding.accuracy for finding in findings if finding.cap == cap]


def mean_and_spread(values: Sequence[float]) -> str:
    """Two cells of a table in Markdown."""
    spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
    return f"{statistics.mean(values):.2f} | {spread}"


def search_all(
    name: str, settings: BenchSettings, search: Callable[[str, int], F], progress: Progress
) -> tuple[F, ...]:
    """One search a cap and seed, in order."""
    findings = []
    for cap in settings.caps:
        for seed in settings.seeds:
            progress.note(f"{name}: cap {cap}, seed {seed}")
            findings.append(search(cap, seed))
    return tuple(findings)


def search_once(config: RunConfig, progress: Progress) -> tuple[Architecture, dict[str, Any]]:
    """The best architecture of one search, and what a finding says of the search itself."""
    values = run(config, until="sample", progress=progress).values
    path = Path(config.out) / "architecture.json"
    seconds = values["seconds"]["search"] + values["seconds"]["sample"]
    facts = {"val_best": values["candidates"]["val_best"], "seconds": seconds}
    return Architecture.from_json(read_json(path), subject=str(path)), facts


@dataclass(frozen=True)
class BenchResult(Generic[S, F, R]):
    """What the searches of a benchmark found, and what there is to compare with.

    Attributes:
        settings: The settings.
        findings: One a cap and seed, each a dataclass.
        references: What the table holds under each cap, each a dataclass.
    """

    settings: S
    findings: tuple[F, ...]
    references: Mapping[str, R]

    name: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        paths = {"table": str(self.settings.table), "out": str(self.settings.out)}
        return {
            "bench": self.name,
            "settings": asdict(self.settings) | paths,
            "findings": [asdict(finding) for finding in self.findings],
            "references": {cap: asdict(found) for cap, found in self.references.items()},
        }

    def write(self) -> None:
        """Write ``results.json``."""
        write_bytes(self.settings.out / "results.json", to_json(self.to_json(), indent=1).encode())
