"""What a finished cell says of itself."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgnas.errors import RunFolderError
from pgnas.run_folder import RunFolder
from pgnas.stages.candidates import Candidate
from pgnas.stages.result import read_result
from pgnas.stages.studies.measurements import Measurement
from pgnas.stages.studies.plan import Cell


@dataclass(frozen=True)
class CellFiles:
    """The files of a finished cell that a study reads.

    Attributes:
        result: ``result.json``.
        candidates: In the order in which they were drawn.
    """

    result: Mapping[str, Any]
    candidates: tuple[Candidate, ...]

    @classmethod
    def read(cls, cell: Cell) -> CellFiles:
        """The files of a cell.

        Raises:
            RunFolderError: The cell is not finished.
        """
        with RunFolder.open(cell.path, writer=False) as folder:
            result = read_result(folder)
            rows = folder.read_lines("candidates.jsonl")
        if not rows:
            raise RunFolderError(str(cell.path), "must have candidates", value="none", remedy="remove it and run again")
        return cls(result, tuple(Candidate.from_row(row) for row in rows))


def found_values(network: Mapping[str, Any]) -> dict[str, float]:
    """Size and test error of a network of ``result.json``."""
    return {"params": float(network["params"]), "test_error": 1 - float(network["test_accuracy"])}


def candidate_values(candidates: Sequence[Candidate]) -> dict[str, float]:
    """How the samples did on the images that they were ranked on, before any fine-tuning."""
    drawn = samples(candidates)
    accuracies = accuracies_of(drawn)
    return {
        "mean_params": statistics.fmean(candidate.counts.params for candidate in drawn),
        "mean_accuracy": statistics.fmean(accuracies),
        "accuracy_spread": statistics.pstdev(accuracies),
        "best_accuracy": max(accuracies),
    }


def samples(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """The candidates without the posterior's mode, which is no random draw and often larger; all if it is alone."""
    return [candidate for candidate in candidates if not candidate.is_mode] or candidates


def accuracies_of(candidates: Sequence[Candidate]) -> tuple[float, ...]:
    """The validation accuracy of each."""
    return tuple(candidate.score.metric for candidate in candidates if candidate.score is not None)


def measure_cell(cell: Cell) -> list[Measurement]:
    """The row of a cell's found network and candidates and, where it was fine-tuned, that of the network after it."""
    files, seed = CellFiles.read(cell), cell.config.seed
    values = found_values(files.result["found"]) | candidate_values(files.candidates)
    rows = [Measurement(cell.variant.title, seed, values, accuracies_of(samples(files.candidates)))]
    if cell.variant.finetuned is not None and "finetuned" in files.result:
        rows.append(Measurement(cell.variant.finetuned, seed, found_values(files.result["finetuned"])))
    return rows
