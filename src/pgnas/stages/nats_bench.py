"""``pgnas bench nats-size``: search the size space of NATS-Bench, and look up what the network found achieves.

For each cap and seed the posterior of a narrower ``nats-size`` network is learned on smaller images, with one gate a
width. Candidates are ranked on held-out images. Of the best one the kept channels of each gate are counted and
multiplied by 64 / width. The table's row nearest to these five widths is the result, among those under the cap of which
no width could grow within the flops that the five cost. Which channels are kept does not matter to the row: they are
interchangeable. Its accuracy is read when the search is over.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from pgnas.amounts import Amount
from pgnas.config import RunConfig
from pgnas.errors import ConfigError
from pgnas.progress import Progress, SilentReporter
from pgnas.stages.nats_tables import SizeReferences, SizeRow, SizeTable
from pgnas.stages.table_bench import (
    BenchResult,
    BenchSettings,
    accuracies,
    mean_and_spread,
    search_all,
    search_once,
)
from pgnas.supernets.nats_parts import places
from pgnas.supernets.nats_size import LARGEST, MULTIPLE, kept_widths, nats_size, size_macs


@dataclass(frozen=True, kw_only=True)
class SizeBench(BenchSettings):
    """The settings of the benchmark.

    Attributes:
        column: The table's column of accuracies; ``None``: the only one.
        width: Width of the supernet, a multiple of 8 up to 64: a channel stands for 64 / width.
        epochs: Epochs of the search.
    """

    column: str | None = None
    caps: tuple[str, ...] = ("6.4%", "25%")
    width: int = 32
    epochs: int = 8

    def __post_init__(self) -> None:
        if not (MULTIPLE <= self.width <= LARGEST and self.width % MULTIPLE == 0):
            rule = f"must be a multiple of {MULTIPLE} up to {LARGEST}"
            raise ConfigError("--width", rule, value=self.width, remedy=f"use for example {LARGEST // 2}")
        super().__post_init__()
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
            out=self.run_folder(cap, seed),
            image_size=self.image_size,
            epochs=self.epochs,
            max_macs=f"{100 * supernet_share(self.share(cap), self.width):.6f}%",
            decide_at="never",
            candidates=self.candidates,
            rank_by="loss",
            shed="on",  # the same search in less time: small networks are looked for in a large one
            streams="off",  # all readers of a value share its gate already: none ever picks
            avoid_selections="off",
            precision=self.precision,
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


class SizeBenchResult(BenchResult[SizeBench, SizeFinding, SizeReferences]):
    """What the searches found, and what there is to compare with."""

    name = "nats-size"

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
            found = mean_and_spread(accuracies(self.findings, cap))
            near = "-" if references.near_cap is None else f"{references.near_cap:.2f}"
            uniform = f"{references.uniform:.2f} (width {references.uniform_width}, {references.uniform_share:.2%})"
            lines.append(f"| {cap} | {found} | {uniform} | {near} | {references.best:.2f} |")
        return lines


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
    search = functools.partial(_search, settings, table, progress)
    findings = search_all(SizeBenchResult.name, settings, search, progress)
    references = {cap: table.references(flops) for cap, flops in caps.items()}
    result = SizeBenchResult(settings, findings, references)
    result.write()
    return result


def _search(settings: SizeBench, table: SizeTable, progress: Progress, cap: str, seed: int) -> SizeFinding:
    """One search, and then its row."""
    architecture, facts = search_once(settings.config(cap, seed), progress)
    kept = kept_widths(nats_size(width=settings.width), architecture)
    widths = [channels * LARGEST / settings.width for channels in kept]
    network = table.nearest(widths, settings.share(cap) * table.largest, use=size_macs(widths))
    share, accuracy = network.flops / table.largest, table.accuracy(network.row)
    return SizeFinding(cap, seed, kept, network, share, accuracy, **facts)


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
