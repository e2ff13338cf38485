"""``pgnas bench nats-topology``: search NATS-Bench's cells, and look up what the cell found achieves.

For each cap and seed the posterior of a smaller ``nats-topology`` network is learned on smaller images: one categorical
gate an edge, shared by all cells. Candidates are drawn from it, ranked on held-out images, and told apart by training
each for a short while. The operations of the best one are the row of the table; an operation that is not connected with
input and output computes nothing, and counts as ``none``. The table's accuracy is read when the search is over.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pgnas.amounts import Amount
from pgnas.architecture import Architecture
from pgnas.config import RunConfig, Switch
from pgnas.errors import ConfigError
from pgnas.nn import measure
from pgnas.progress import Progress, SilentReporter
from pgnas.run_folder.storage import read_json
from pgnas.stages.nats_tables import TopologyReferences, TopologyRow, TopologyTable
from pgnas.stages.table_bench import (
    BenchResult,
    BenchSettings,
    accuracies,
    check_each,
    mean_and_spread,
    search_all,
    search_once,
)
from pgnas.supernets.nats_cells import EDGES, connected, format_cell
from pgnas.supernets.nats_topology import chosen_cell, nats_topology

NO_CAP = "none"
LOGIT_LR = 0.01
"""Slow enough that the posterior is not decided at its end: which of its candidates is best the finals tell."""


@dataclass(frozen=True, kw_only=True)
class TopologyBench(BenchSettings):
    """The settings of the benchmark; of the caps, ``"none"`` is none.

    Attributes:
        column: The table's column of accuracies.
        channels: Channels of the supernet's first stage; the benchmark's networks have 16.
        cells: Cells a stage of the supernet; the benchmark's networks have 5.
        epochs: Epochs of the search.
        weights_first: Of these those in which weights learn alone.
        finalists: Of the candidates at most so many are told apart by training them; 0: none.
        finalist_epochs: Epochs of each in the first round.
        compile: ``torch.compile``.
    """

    column: str = "c10_test_200ep"
    caps: tuple[str, ...] = (NO_CAP, "50%")
    channels: int = 16
    cells: int = 1
    epochs: int = 12
    weights_first: float = 8.0
    candidates: int = 16
    finalists: int = 16
    finalist_epochs: int = 1
    compile: Switch = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.caps:
            if text != NO_CAP and not Amount.parse(text, subject="--caps").relative:
                raise ConfigError("--caps", "must be shares", value=repr(text), remedy="write for example none,50%")
        nats_topology(channels=self.channels, cells=self.cells)
        check_each(self, functools.partial(self.config, max_macs=None))

    def cap(self, text: str) -> float:
        """A cap as a share of the largest cell's flops; 1 for none."""
        return 1.0 if text == NO_CAP else Amount.parse(text, subject="--caps").value

    def config(self, cap: str, seed: int, max_macs: int | None) -> RunConfig:
        """The settings of one search, the cap in multiply-adds of the supernet's networks."""
        return RunConfig(
            model=f"nats-topology:channels={self.channels},cells={self.cells}",
            data=self.data,
            out=self.run_folder(cap, seed),
            granularity="operation",
            image_size=self.image_size,
            epochs=self.epochs,
            prior="bernoulli" if max_macs is None else "gibbs",  # that all cells are equally likely, but for their cost
            max_macs=None if max_macs is None else str(max_macs),
            decide_at="never",
            temperature=1.0,
            logit_lr=LOGIT_LR,
            weights_first=self.weights_first,
            candidates=self.candidates,
            finalists=min(self.finalists, self.candidates) if self.candidates > 1 else 0,
            finalist_epochs=self.finalist_epochs,
            rank_by="loss",
            compile=self.compile,
            precision=self.precision,
            seed=seed,
        )


@dataclass(frozen=True)
class TopologyFinding:
    """What one search found.

    Attributes:
        cap: The cap, as it was written.
        seed: The seed.
        network: The row of the table.
        share: Its flops as a share of the largest cell's.
        accuracy: What it achieved, from the table.
        val_best: Validation accuracy of the best candidate, which chose it: optimistic.
        mode: The posterior's most probable cell.
        mode_accuracy: What that achieved, from the table; it may be over the cap.
        seconds: Time of the search and the ranking.
    """

    cap: str
    seed: int
    network: TopologyRow
    share: float
    accuracy: float
    val_best: float
    mode: str
    mode_accuracy: float
    seconds: float


class TopologyBenchResult(BenchResult[TopologyBench, TopologyFinding, TopologyReferences]):
    """What the searches found, and what there is to compare with."""

    name = "nats-topology"

    def summary(self) -> list[str]:
        """Tables in Markdown: every search, then the caps."""
        lines = ["| cap | seed | cell | flops | true accuracy | most probable cell | minutes |"]
        lines += ["|---|---|---|---|---|---|---|"]
        lines += [
            f"| {f.cap} | {f.seed} | `{f.network.cell}` | {f.share:.1%} | {f.accuracy:.2f} | {f.mode_accuracy:.2f} "
            f"| {f.seconds / 60:.1f} |"
            for f in self.findings
        ]
        lines += ["", "| cap | mean | standard deviation | lowest | all cells, mean | only skips | best cell |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for cap, found in self.references.items():
            values = accuracies(self.findings, cap)
            lines.append(
                f"| {cap} | {mean_and_spread(values)} | {min(values):.2f} | {found.mean:.2f} "
                f"| {found.only_skips:.2f} | {found.best:.2f} |"
            )
        return lines


def bench_topology(settings: TopologyBench, *, progress: Progress | None = None) -> TopologyBenchResult:
    """Do all searches, score what they found, and write ``results.json``.

    Raises:
        ConfigError: A setting breaks a rule.
        FileError: The table is none.
        DataError: The data cannot be read.
        RunError: A search went wrong; what was saved stays.
    """
    progress = progress or SilentReporter()
    table = TopologyTable(settings.table, column=settings.column)
    caps = {cap: settings.cap(cap) * table.largest for cap in settings.caps}
    references = {cap: table.references(flops) for cap, flops in caps.items()}  # a cap too low is refused here
    search = functools.partial(_search, settings, table, progress)
    findings = search_all(TopologyBenchResult.name, settings, search, progress)
    result = TopologyBenchResult(settings, findings, references)
    result.write()
    return result


def _search(settings: TopologyBench, table: TopologyTable, progress: Progress, cap: str, seed: int) -> TopologyFinding:
    """One search, and then its row."""
    max_macs = None if cap == NO_CAP else supernet_cap(settings, settings.cap(cap) * table.largest, table)
    config = settings.config(cap, seed, max_macs)
    architecture, facts = search_once(config, progress)
    network, mode = table.row(_cell(architecture)), table.row(_cell(_mode(Path(config.out))))
    return TopologyFinding(
        cap,
        seed,
        network,
        network.flops / table.largest,
        table.accuracy(network.row),
        mode=mode.cell,
        mode_accuracy=table.accuracy(mode.row),
        **facts,
    )


def _mode(run_folder: Path) -> Architecture:
    """The likeliest option of every choice, from the run's summary."""
    summary: Any = read_json(run_folder / "supernet.json")
    choices = summary["choices"]
    kept = {name: (max(range(len(p)), key=list(p.values()).__getitem__),) for name, p in choices.items()}
    return Architecture({name: len(p) for name, p in choices.items()}, kept)


def _cell(architecture: Architecture) -> str:
    """The string of a cell, without the operations that are connected with nothing."""
    return format_cell(connected(chosen_cell(architecture)))


def supernet_cap(settings: TopologyBench, flops: float, table: TopologyTable) -> int:
    """The cap on the supernet's cells that stands for a cap on the benchmark's networks.

    Both cost so much a 3x3 convolution in the cell, a ninth of that a 1x1 convolution, and something in any case.
    """
    side = settings.image_size or 32
    image = torch.zeros(1, 3, side, side)

    def macs(operation: str) -> int:
        cell = format_cell(dict.fromkeys(EDGES, operation))
        return measure(nats_topology(channels=settings.channels, cells=settings.cells, cell=cell), (image,)).macs

    least, most = macs("skip_connect"), macs("nor_conv_3x3")
    return int(least + (most - least) * (flops - table.cheapest) / (table.largest - table.cheapest))
