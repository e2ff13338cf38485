"""``pgnas bench``: searches in benchmarks whose networks were all trained, scored by what those achieved."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter, Token

from pgnas.cli.flags import parts, whole_number, wholes
from pgnas.cli.reporter import reporter
from pgnas.config import Precision, Switch
from pgnas.console import print_lines
from pgnas.errors import ConfigError

app = App(
    name="bench",
    help="Search in a benchmark whose networks were all trained, and look up what was found.",
    sort_key=100,  # after all other commands
)
_WHOLE = Parameter(converter=whole_number)


def _words(_: object, tokens: Sequence[Token]) -> tuple[str, ...]:
    return parts(tokens)


@app.command
def nats_size(
    *,
    out: Path,
    data: str = "cifar10",
    table: Path | None = None,
    column: str | None = None,
    caps: Annotated[tuple[str, ...], Parameter(converter=_words, negative=())] = ("6.4%", "25%"),
    seeds: Annotated[tuple[int, ...], Parameter(converter=wholes, negative=())] = (0, 1, 2),
    width: Annotated[int, _WHOLE] = 32,
    image_size: Annotated[int, _WHOLE] = 16,
    epochs: Annotated[int, _WHOLE] = 8,
    candidates: Annotated[int, _WHOLE] = 64,
    finalists: Annotated[int, _WHOLE] = 0,
    finalist_epochs: Annotated[int, _WHOLE] = 1,
    precision: Precision = "auto",
) -> None:
    """Search NATS-Bench's size space under caps on the flops; print the true accuracy of what was found.

    The same command again takes up where an interrupted one was. The table scores the end result and guides nothing.

    Args:
        out: Folder for the runs and results.json.
        data: The images to search on, as for pgnas run.
        table: The benchmark's table, an .npz file; not given: nats_size.npz in the folder $PGNAS_DATA.
        column: The table's column of accuracies; not given: the only one.
        caps: Shares of the largest network's flops.
        seeds: A search each.
        width: Width of the supernet, a multiple of 8 up to 64.
        image_size: Side in pixels of the images in the search.
        epochs: Epochs of a search.
        candidates: Architectures drawn and ranked.
        finalists: At most so many rows near the best one are told apart by training them; 0: none.
        finalist_epochs: Epochs of each in the first round.
        precision: Number format of the forward pass: auto, fp32, bf16 or fp16.
    """
    given: dict[str, Any] = {"caps": caps, "seeds": seeds, "width": width, "image_size": image_size}
    given |= {"epochs": epochs, "candidates": candidates, "column": column, "precision": precision}
    given |= {"finalists": finalists, "finalist_epochs": finalist_epochs}
    with reporter() as progress:
        from pgnas.stages.nats_bench import SizeBench, bench_size

        settings = SizeBench(data=data, table=table or _table("nats_size.npz"), out=out, **given)
        result = bench_size(settings, progress=progress)
    print_lines(result.summary())


@app.command
def nats_topology(
    *,
    out: Path,
    data: str = "cifar10",
    table: Path | None = None,
    column: str = "c10_test_200ep",
    caps: Annotated[tuple[str, ...], Parameter(converter=_words, negative=())] = ("none", "50%"),
    seeds: Annotated[tuple[int, ...], Parameter(converter=wholes, negative=())] = (0, 1, 2),
    channels: Annotated[int, _WHOLE] = 16,
    cells: Annotated[int, _WHOLE] = 1,
    image_size: Annotated[int, _WHOLE] = 16,
    epochs: Annotated[int, _WHOLE] = 12,
    weights_first: float = 8.0,
    candidates: Annotated[int, _WHOLE] = 16,
    finalists: Annotated[int, _WHOLE] = 16,
    finalist_epochs: Annotated[int, _WHOLE] = 1,
    compile: Switch = "auto",
    precision: Precision = "auto",
) -> None:
    """Search NATS-Bench's topology space, with a cap on the flops or none; print the true accuracy of what was found.

    The same command again takes up where an interrupted one was. The table scores the end result and guides nothing.

    Args:
        out: Folder for the runs and results.json.
        data: The images to search on, as for pgnas run.
        table: The benchmark's table, an .npz file; not given: nats_topology.npz in the folder $PGNAS_DATA.
        column: The table's column of accuracies.
        caps: Shares of the largest cell's flops, or none.
        seeds: A search each.
        channels: Channels of the supernet's first stage.
        cells: Cells a stage of the supernet.
        image_size: Side in pixels of the images in the search.
        epochs: Epochs of a search.
        weights_first: Of these those in which weights learn alone.
        candidates: Architectures drawn and ranked.
        finalists: At most so many of these are told apart by training them, half of them for twice as long, and so on.
        finalist_epochs: Epochs of each in the first round.
        compile: torch.compile.
        precision: Number format of the forward pass: auto, fp32, bf16 or fp16.
    """
    given: dict[str, Any] = {"caps": caps, "seeds": seeds, "channels": channels, "cells": cells, "compile": compile}
    given |= {"image_size": image_size, "epochs": epochs, "weights_first": weights_first, "candidates": candidates}
    given |= {"finalists": finalists, "finalist_epochs": finalist_epochs, "precision": precision}
    with reporter() as progress:
        from pgnas.stages.topology_bench import TopologyBench, bench_topology

        settings = TopologyBench(data=data, table=table or _table("nats_topology.npz"), out=out, column=column, **given)
        result = bench_topology(settings, progress=progress)
    print_lines(result.summary())


def _table(name: str) -> Path:
    home = os.environ.get("PGNAS_DATA")
    if not home:
        raise ConfigError("--table", f"must name the benchmark's {name}", remedy="give it, or set PGNAS_DATA")
    return Path(home) / name
