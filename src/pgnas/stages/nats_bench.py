"""``pgnas bench nats-size``: search the size space of NATS-Bench, and look up what the network found achieves.

For each cap and seed the posterior of a narrower ``nats-size`` network is learned on smaller images, with one gate a
width. Candidates are ranked on held-out images. Of the best one the kept channels of every gate are counted and
multiplied by 64 / width. Which channels are kept does not matter: they are interchangeable. The table's widths are
multiples of 8: the result is the row nearest to these five, of those under the cap of which no width could grow within
the flops that the five cost. If asked for, the nearest few are told apart by training the network of each, from new
weights, for a short while. The result's accuracy is read when the search is over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pgnas.amounts import Amount
from pgnas.config import RunConfig
from pgnas.errors import ConfigError
from pgnas.nn import measure
from pgnas.processes import join
from pgnas.progress import Progress, SilentReporter
from pgnas.run_folder import RunFolder, SharedFolder
from pgnas.seeds import derive_seed
from pgnas.stages.context import Context
from pgnas.stages.finalists import Finalist, halve
from pgnas.stages.nats_tables import SizeReferences, SizeRow, SizeTable
from pgnas.stages.phases import NetworkPhase
from pgnas.stages.pipeline import do_stage
from pgnas.stages.schedule import Schedule
from pgnas.stages.store import FolderStore
from pgnas.stages.table_bench import (
    BenchResult,
    BenchSettings,
    accuracies,
    check_each,
    mean_and_spread,
    search_all,
    search_once,
)
from pgnas.supernets import build_model
from pgnas.supernets.nats_parts import places
from pgnas.supernets.nats_size import LARGEST, MULTIPLE, kept_widths, nats_size, size_macs


@dataclass(frozen=True, kw_only=True)
class SizeBench(BenchSettings):
    """The settings of the benchmark.

    Attributes:
        column: The table's column of accuracies; ``None``: the only one.
        width: Width of the supernet, a multiple of 8 up to 64: a channel stands for 64 / width.
        epochs: Epochs of the search.
        finalists: At most so many rows near the best candidate's widths are told apart by training them; 0: none.
        finalist_epochs: Epochs of each in the first round.
    """

    column: str | None = None
    caps: tuple[str, ...] = ("6.4%", "25%")
    width: int = 32
    epochs: int = 8
    finalists: int = 0
    finalist_epochs: int = 1

    def __post_init__(self) -> None:
        if not (MULTIPLE <= self.width <= LARGEST and self.width % MULTIPLE == 0):
            rule = f"must be a multiple of {MULTIPLE} up to {LARGEST}"
            raise ConfigError("--width", rule, value=self.width, remedy=f"use for example {LARGEST // 2}")
        if self.finalists < 0 or self.finalists == 1:
            rule = "must be 0, or at least 2"
            raise ConfigError("--finalists", rule, value=self.finalists, remedy="choose 0 for none")
        if self.finalist_epochs < 1:
            raise ConfigError("--finalist-epochs", "must be at least 1", value=self.finalist_epochs, remedy="raise it")
        super().__post_init__()
        for text in self.caps:
            if not Amount.parse(text, subject="--caps").relative:
                raise ConfigError("--caps", "must be shares", value=repr(text), remedy="write for example 6.4%,25%")
        check_each(self, self.config)

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
        finalists: The widths that were told apart by training their networks, the nearest first.
        seconds: Time of the search, the ranking and the finals.
    """

    cap: str
    seed: int
    kept: tuple[int, ...]
    network: SizeRow
    share: float
    accuracy: float
    val_best: float
    finalists: tuple[tuple[int, ...], ...]
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
    config, processes = settings.config(cap, seed), join()
    architecture, facts = search_once(config, progress)
    kept = kept_widths(nats_size(width=settings.width), architecture)
    widths = [channels * LARGEST / settings.width for channels in kept]
    count, flops = max(1, settings.finalists), settings.share(cap) * table.largest
    rows = {_name(row): row for row in table.nearest(widths, flops, use=size_macs(widths), count=count)}
    winner = next(iter(rows))
    if len(rows) > 1:
        name = f"finals-{settings.finalists}x{settings.finalist_epochs}"
        hold = functools.partial(_hold, names=list(rows), epochs=settings.finalist_epochs)
        with SharedFolder.share(processes, lambda: RunFolder.open(config.out)) as folder:
            do_stage(Context(folder, progress, processes=processes), name, hold)
            winner = str(folder.stage_facts(name)["winner"])
            facts["seconds"] += folder.stage_seconds(name)
    network, finalists = rows[winner], tuple(row.widths for row in rows.values())
    share, accuracy = network.flops / table.largest, table.accuracy(network.row)
    return SizeFinding(cap, seed, kept, network, share, accuracy, finalists=finalists, **facts)


def _name(row: SizeRow) -> str:
    """Its widths, as ``nats-size`` takes them."""
    return "-".join(map(str, row.widths))


def _hold(run: Context, store: FolderStore, *, names: Sequence[str], epochs: int) -> dict[str, Any]:
    """Tell rows apart by training the network of each, from new weights."""
    finalists = []
    for name in names:
        network = functools.partial(_network, run, name)
        cost = run.recipe.cost(measure(network(), (run.example,)))
        finalists.append(Finalist(name, cost, functools.partial(_phase, run, network)))
    left, spent = halve(run, store, finalists, epochs=epochs, lr=run.config.peak_lr)
    return {"winner": left[0], "runner_up": left[1], "spent": spent}


def _network(run: Context, widths: str) -> nn.Module:
    """The benchmark's own network of these widths, with new weights."""
    return build_model(
        f"nats-size:widths={widths},skips=published",
        in_channels=run.built.in_channels,
        num_classes=len(run.data.class_names),
        image_size=run.data.preprocessing.size,
        seed=derive_seed(run.config.seed, "weights"),
    ).module


def _phase(run: Context, network: Callable[[], nn.Module], name: str, schedule: Schedule) -> NetworkPhase:
    return run.recipe.plain_phase(run.engine.place(network()), name=name, schedule=schedule)


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
