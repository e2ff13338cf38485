"""``pgnas bench nats-size``: search the size space of NATS-Bench, and look up what the network found achieves.

For each cap and seed the posterior of a narrower ``nats-size`` network is learned on smaller images, with one gate a
width. Candidates are ranked on held-out images. Of the best one the kept channels of each gate are counted and
multiplied by 64 / width; the table's row nearest to these five widths, among those under the cap, is the result. Which
channels are kept does not matter to the row: they are interchangeable. Its accuracy is read when the search is over.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pgnas.amounts import Amount
from pgnas.architecture import Architecture
from pgnas.config import RunConfig
from pgnas.errors import ConfigError
from pgnas.progress import Progress, SilentReporter
from pgnas.run_folder.storage import read_json, to_json, write_bytes
from pgnas.stages.nats_tables import SizeReferences, SizeRow, SizeTable
from pgnas.stages.pipeline import run
from pgnas.supernets.nats_parts import places
from pgnas.supernets.nats_size import LARGEST, MULTIPLE, kept_widths, nats_size, size_macs


@dataclass(frozen=True, kw_only=True)
class SizeBench:
    """The settings of the benchmark: the same for every cap and every data set.

    Attributes:
        data: What ``--data`` of ``pgnas run`` takes.
        table: The table, an ``.npz`` file.
        out: A folder for the runs and ``results.json``; a rerun takes up where it was.
        column: The table's column of accuracies; ``None``: the only one.
        caps: Caps on the flops, as shares of the largest network's.
        seeds: A search each.
        width: Width of the supernet, a multiple of 8 up to 64: a channel stands for 64 / width.
        image_size: Side of the images in the search; ``None``: as they are.
        epochs: Epochs of the search.
        candidates: Architectures ranked.
    """

    data: str
    table: Path
    out: Path
    column: str | None = None
    caps: tuple[str, ...] = ("6.4%", "25%")
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 32
    image_size: int | None = 16
    epochs: int = 8
    candidates: int = 64

    def __post_init__(self) -> None:
        if not (MULTIPLE <= self.width <= LARGEST and self.width % MULTIPLE == 0):
            rule = f"must be a multiple of {MULTIPLE} up to {LARGEST}"
            raise ConfigError("--width", rule, value=self.width, remedy=f"use for example {LARGEST // 2}")
        require_distinct("--caps", self.caps)
        require_distinct("--seeds", self.seeds)
        for text in self.caps:
            if not Amount.parse(text, subject="--caps").relative:
                raise ConfigError("--caps", "must be shares", value=repr(text), remedy="write for example 6.4%,25%")

    def share(self, cap: str) -> float:
        """A cap as a share of the largest network's flops."""
        return Amount.parse(cap, subject="--caps").value

    def config(self, cap: str, seed: int) -> RunConfig:
        """The settings of one search."""
        return RunConfig(
            model=f"nats-size:width={self.width}",
            data=self.data,
            out=str(self.out / f"cap{cap.strip().rstrip('%').strip()}-seed{seed}"),
            image_size=self.image_size,
            epochs=self.epochs,
            max_macs=f"{100 * supernet_share(self.share(cap), self.width):.6f}%",
            decide_at="never",
            candidates=self.candidates,
            round_to=self.width * MULTIPLE // LARGEST,
            avoid_selections="off",  # all readers of a value share its gate: none ever picks
            seed=seed,
        )


@dataclass(frozen=True)
class SizeFinding:
    """What one search found.

    Attributes:
        cap: The cap, as it was written.
        seed: The seed.
        kept: Channels kept of each of the supernet's widths.
        network: The row of the table.
        share: Its flops as a share of the largest network's.
        accuracy: What it achieved, from the table.
        val_best: Validation accuracy of the best candidate, which chose it: optimistic.
        seconds: Time of the search and the ranking.
    """

    cap: str
    seed: int
    kept: tuple[int, ...]
    network: SizeRow
    share: float
    accuracy: float
    val_best: float
    seconds: float


@dataclass(frozen=True)
class SizeBenchResult:
    """What the searches found, and what there is to compare with.

    Attributes:
        settings: The settings.
        findings: One a cap and seed.
        references: What the table holds under each cap.
    """

    settings: SizeBench
    findings: tuple[SizeFinding, ...]
    references: Mapping[str, SizeReferences]

    def of(self, cap: str) -> tuple[SizeFinding, ...]:
        """The findings under one cap."""
        return tuple(finding for finding in self.findings if finding.cap == cap)

    def summary(self) -> list[str]:
        """Tables in Markdown: every search, then the caps."""
        lines = ["| cap | seed | c1-c2-c3-c4-c5 | flops | true accuracy | minutes |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {f.cap} | {f.seed} | {'-'.join(map(str, f.network.widths))} | {f.share:.2%} | {f.accuracy:.2f} "
            f"| {f.seconds / 60:.1f} |"
            for f in self.findings
        ]
        lines += ["", "| cap | mean | standard deviation | uniform width | 90-100 % of the cap | best row |"]
        lines += ["|---|---|---|---|---|---|"]
        for cap, references in self.references.items():
            values = [finding.accuracy for finding in self.of(cap)]
            spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
            near = "-" if references.near_cap is None else f"{references.near_cap:.2f}"
            uniform = f"{references.uniform:.2f} (width {references.uniform_width}, {references.uniform_share:.2%})"
            lines.append(
                f"| {cap} | {statistics.mean(values):.2f} | {spread} | {uniform} | {near} | {references.best:.2f} |"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        settings = asdict(self.settings) | {"table": str(self.settings.table), "out": str(self.settings.out)}
        return {
            "bench": "nats-size",
            "settings": settings,
            "findings": [asdict(finding) for finding in self.findings],
            "references": {cap: asdict(references) for cap, references in self.references.items()},
        }


def require_distinct(name: str, values: Sequence[object]) -> None:
    """Check a list of settings.

    Raises:
        ConfigError: It is empty, or something is in it twice.
    """
    if not values or len(set(values)) != len(values):
        raise ConfigError(name, "must be one or more different values", value=list(values), remedy="list them")


def bench_size(settings: SizeBench, *, progress: Progress | None = None) -> SizeBenchResult:
    """Do all searches, score what they found, and write ``results.json``.

    Raises:
        ConfigError: A setting breaks a rule.
        FileError: The table is none.
        DataError: The data cannot be read.
        RunError: A search went wrong; what was saved stays.
    """
    progress = progress or SilentReporter()
    table = SizeTable(settings.table, column=settings.column)
    caps = {cap: settings.share(cap) * table.largest for cap in settings.caps}
    for flops in caps.values():
        table.nearest([0.0] * places(1), flops)  # a cap too low is refused before any search
    findings = []
    for cap in settings.caps:
        for seed in settings.seeds:
            progress.note(f"nats-size: cap {cap}, seed {seed}")
            findings.append(_search(settings, table, cap, seed, progress))
    references = {cap: table.references(flops) for cap, flops in caps.items()}
    result = SizeBenchResult(settings, tuple(findings), references)
    write_bytes(settings.out / "results.json", to_json(result.to_json(), indent=1).encode())
    return result


def _search(settings: SizeBench, table: SizeTable, cap: str, seed: int, progress: Progress) -> SizeFinding:
    """One search, and then its row."""
    config = settings.config(cap, seed)
    values = run(config, until="sample", progress=progress).values
    path = Path(config.out) / "architecture.json"
    architecture = Architecture.from_json(read_json(path), subject=str(path))
    kept = kept_widths(nats_size(width=settings.width), architecture)
    scale = LARGEST / settings.width
    network = table.nearest([scale * channels for channels in kept], settings.share(cap) * table.largest)
    return SizeFinding(
        cap,
        seed,
        kept,
        network,
        network.flops / table.largest,
        table.accuracy(network.row),
        values["candidates"]["val_best"],
        values["seconds"]["search"] + values["seconds"]["sample"],
    )


def supernet_share(share: float, width: int) -> float:
    """The cap of a supernet of ``width`` that stands for a cap on networks of the full width.

    Stem and classifier cost in proportion to the width, all else to its square, so that one share does not mean the
    same for both. What is kept is the cost of the uniform network that just meets the cap.
    """
    full = size_macs([LARGEST] * places(1))
    low, high = 0.0, float(LARGEST)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if size_macs([middle] * places(1)) <= share * full else (low, middle)
    uniform = [low * width / LARGEST] * places(1)
    return size_macs(uniform, skips="conv") / size_macs([width] * places(1), skips="conv")
