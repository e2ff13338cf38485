"""A cell: one method on one network under one cap with one seed; its name, its settings and its result."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from bench.peers.networks import NETWORKS, Network

from pgnas.amounts import Amount
from pgnas.nn import Counts
from pgnas.run_folder.storage import to_json, write_bytes

Start = Literal["scratch", "trained"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a cell is; cells that differ in nothing but method and seed are rows of one table.

    Attributes:
        method: A name in ``bench.peers.methods.METHODS``.
        network: A name in ``NETWORKS``.
        cap: Share of the full network's multiply-adds or parameters, such as ``"40%"``.
        seed: Of weights, noise, order and candidates.
        start: With weights drawn at random, or with those of the trained full network.
        epochs: The budget, in epochs of the full network; of a trained start the epochs of that network.
        data: What stands for the data in the name.
        dense_share: Share of the budget in which a pruner trains the full network.
        candidates: Sub-networks that a search ranks.
        precision: Number format of the forward pass, as of ``pgnas run --precision``.
    """

    method: str
    network: str
    cap: str
    seed: int
    start: Start = "scratch"
    epochs: int = 20
    data: str = "cifar10"
    dense_share: str = "50%"
    candidates: int = 64
    precision: str = "auto"

    @property
    def base(self) -> Network:
        """The base network."""
        return NETWORKS[self.network]

    @property
    def table(self) -> str:
        """The table that the cell belongs to, as a part of a file's name."""
        cap = f"{self.base.capped}{self.cap.rstrip('%')}"
        parts = [self.network, cap, self.start, f"{self.epochs}epochs", self.data]
        if self.dense_share != "50%":
            parts.append(f"dense{self.dense_share.rstrip('%')}")
        if self.candidates != 64:
            parts.append(f"{self.candidates}candidates")
        if self.precision != "auto":
            parts.append(self.precision)
        return "-".join(parts)

    @property
    def name(self) -> str:
        """Names its files."""
        return f"{self.table}-{self.method}-seed{self.seed}"

    @property
    def full(self) -> Cell:
        """The cell that trains the full network from which a trained start begins."""
        return replace(self, method="full", start="scratch")

    def caps(self, full: Counts) -> dict[str, int]:
        """What is capped, to its cap as a count, for the counts of the full network."""
        kind = self.base.capped
        return {kind: int(Amount.parse(self.cap, subject="--cap").of(getattr(full, kind)))}

    def result(self, out: Path) -> Path:
        """Its result, in the folder of the bench."""
        return out / "cells" / f"{self.name}.json"

    def folder(self, out: Path) -> Path:
        """The run folder in which it is worked on."""
        return out / "work" / self.name

    def write(self, out: Path, values: dict[str, Any]) -> None:
        """Keep its result; a kill leaves the whole file or none."""
        path = self.result(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, f"{to_json({'cell': asdict(self), **values}, indent=2)}\n".encode())

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """The cell of a result."""
        return cls(**values["cell"])


def read_results(out: Path) -> list[dict[str, Any]]:
    """Every result in the folder of the bench, by name."""
    return [json.loads(path.read_text()) for path in sorted((out / "cells").glob("*.json"))]
