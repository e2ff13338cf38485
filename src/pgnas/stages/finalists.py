"""The last round of a ranking: the best candidates are trained for a short while each, and again half of them.

With the supernet's weights a candidate is judged by what its operations learned among all others. Operations that take
long to learn are undervalued so, and differences of a few tenths of a point are lost. Here compute is spent on telling
few candidates apart: successive halving with epochs as the resource (Jamieson & Talwalkar 2016). What they learn is
thrown away; the winner goes on with the supernet's weights as any winner does.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from pgnas.nn import extract_small
from pgnas.progress import Progress, SilentReporter
from pgnas.stages.candidates import Candidate, worth
from pgnas.stages.context import Context
from pgnas.stages.epochs import run_epochs
from pgnas.stages.phases import NetworkPhase
from pgnas.stages.schedule import Schedule, WarmRestarts
from pgnas.stages.training import Score, Store, recalibrate

FINALISTS_NAME = "finalists.jsonl"
LR_SHARE = 0.5
"""Peak learning rate of a round, as a share of the run's: weights that the supernet has learned should not be lost."""
GROWTH = 2
"""Each round has so many times the epochs of the one before, with as many candidates fewer."""


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        count: Candidates that take part.
        epochs: Epochs of each.
        stop: Epochs that each has behind at its end, those of earlier rounds included.
    """

    count: int
    epochs: int
    stop: int


def rounds(count: int, epochs: int) -> Iterator[Round]:
    """The rounds in which ``count`` candidates become one: half of them, rounded up, go on for twice the epochs.

    Args:
        count: Candidates of the first round, at least 1; with one there is nothing to do.
        epochs: Epochs of each in the first round.
    """
    stop, length = 0, epochs
    while count > 1:
        stop += length
        yield Round(count, length, stop)
        count, length = (count + 1) // 2, length * GROWTH


def price(costs: Sequence[float], epochs: int) -> float:
    """The most that finals may cost, whoever wins a round, in epochs of the full network.

    Args:
        costs: What an epoch of each finalist costs, in epochs of the full network.
        epochs: Epochs of each in the first round.
    """
    dearest = sorted(costs, reverse=True)
    return sum(part.epochs * sum(dearest[: part.count]) for part in rounds(len(costs), epochs))


@dataclass(frozen=True)
class Finalist:
    """One that takes part in finals.

    Attributes:
        name: Tells it from all others of the run, in the names of its checkpoints as well.
        cost: An epoch of it, in epochs of the run's full network.
        begin: Makes its training, from its first step on, of a checkpoints' name and a learning rate.
    """

    name: str
    cost: float
    begin: Callable[[str, Schedule], NetworkPhase]


def hold_finals(
    run: Context, store: Store, best_first: Sequence[Candidate], calibration: Sequence[Any] | None, *, most: float
) -> tuple[Candidate, dict[str, Any]]:
    """Train the best candidates, round by round; the one that is best at the end, with the score it was ranked by.

    Args:
        run: The run.
        store: Keeps checkpoints.
        best_first: Candidates with scores, as they were ranked.
        calibration: Training batches on which BatchNorm is re-estimated first, if that was done in ranking.
        most: What they may cost, in epochs of the full network; there are fewer finalists then, or no finals.

    Returns:
        The winner, and what the stage says of the finals.
    """
    config = run.config
    by_digest = {candidate.architecture.digest: candidate for candidate in best_first}
    finalists = [
        Finalist(digest, run.recipe.cost(candidate.counts), functools.partial(_phase, run, candidate, calibration))
        for digest, candidate in itertools.islice(by_digest.items(), config.finalists)
    ]
    wanted = len(finalists)
    while len(finalists) > 1 and price([f.cost for f in finalists], config.finalist_epochs) > most:
        finalists.pop()
    if len(finalists) < wanted:
        paid = f"{len(finalists)} of them" if len(finalists) > 1 else "no finals"
        run.progress.note(f"finals of {wanted} candidates would take too much of the budget, which pays for {paid}")
    if len(finalists) == 1:
        return best_first[0], {}
    left, spent = halve(run, store, finalists, epochs=config.finalist_epochs, lr=LR_SHARE * config.peak_lr)
    facts: dict[str, Any] = {"finalists": len(finalists), "finalists_spent": spent}
    if len(left) > 1:
        facts["runner_up"] = left[1]
    return by_digest[left[0]], facts


def halve(
    run: Context, store: Store, finalists: Sequence[Finalist], *, epochs: int, lr: float
) -> tuple[list[str], float]:
    """Train finalists round by round, those that score best going on.

    A killed session's rounds are taken up from their checkpoints and ``finalists.jsonl``, where every finalist has a
    row a round. Without torch.compile, as each is another network.

    Args:
        run: The run, on whose training images they are trained, and scored on its selection half by ``--rank-by``.
        store: Keeps checkpoints.
        finalists: Those of the first round, at least one.
        epochs: Epochs of each in the first round.
        lr: Peak learning rate of a round.

    Returns:
        The names of those of the last round, best first, and what all cost, in epochs of the full network.
    """
    known = _scored_before(run)
    program = list(rounds(len(finalists), epochs))
    total, done = sum(part.count * part.epochs for part in program), 0
    left, spent = list(finalists), 0.0
    run.progress.note(f"finals: {len(finalists)} candidates are trained for {epochs} and more epochs each")
    run.progress.stage("sample")  # anew, as the steps now to come are others
    for part in program:
        scores: dict[str, Score] = {}
        for finalist in left[: part.count]:
            score = known.get((finalist.name, epochs, part.stop))
            if score is None:
                progress = _Part(run, done - (part.stop - part.epochs), total)
                phase = finalist.begin(_name(finalist, epochs), _schedule(run, program, lr))
                score = _train(run, phase, _Quiet(store), progress, part.stop)
                row = {"name": finalist.name, "first": epochs, "epochs": part.stop, **asdict(score)}
                run.folder.append_line(FINALISTS_NAME, row)
            scores[finalist.name] = score
            spent += part.epochs * finalist.cost
            done += part.epochs
        left = sorted(left[: part.count], key=lambda finalist: worth(scores[finalist.name], by=run.config.rank_by))
    for finalist in finalists:
        run.folder.delete_checkpoints(_name(finalist, epochs))
    return [finalist.name for finalist in left], spent


def _schedule(run: Context, program: Sequence[Round], lr: float) -> Schedule:
    """A cosine a round."""
    steps = run.steps_an_epoch
    return WarmRestarts(lr, program[-1].stop * steps, 0, float(program[0].epochs * steps), float(GROWTH))


def _phase(
    run: Context, candidate: Candidate, calibration: Sequence[Any] | None, name: str, schedule: Schedule
) -> NetworkPhase:
    """The training of a candidate from the supernet's weights."""
    recalibrates = calibration is not None
    small = extract_small(run.posterior, candidate.architecture, heads=True, re_estimated=recalibrates)
    run.engine.place(small.module)
    if calibration is not None:
        recalibrate(small.module, calibration, engine=run.engine)
    return run.recipe.found_phase(small, {}, compiled=False, name=name, schedule=schedule)


def _train(run: Context, phase: NetworkPhase, store: Store, progress: Progress, stop: int) -> Score:
    """Train a finalist up to the epoch ``stop``, from where its checkpoint is; its score."""
    epochs, seed = range(stop), run.config.seed
    run_epochs(phase, run.train_batches(), epochs=epochs, seed=seed, store=store, progress=progress)
    return run.score(phase.network, run.data.select)


def _name(finalist: Finalist, epochs: int) -> str:
    return f"finalist-{finalist.name}-{epochs}"


def _scored_before(run: Context) -> dict[tuple[str, int, int], Score]:
    """What a killed session has scored: name and epochs, of the first round and in all, to the score.

    A row of another shape is passed over.
    """
    known = {}
    for row in run.folder.read_lines(FINALISTS_NAME):
        values: Mapping[str, Any] = row
        with suppress(KeyError, TypeError, ValueError):
            score = Score(float(values["metric"]), float(values["loss"]), int(values["count"]))
            known[str(values["name"]), int(values["first"]), int(values["epochs"])] = score
    return known


class _Quiet:
    """A store without rows: those of the candidates would stand among the run's own."""

    def __init__(self, store: Store) -> None:
        self.load, self.save, self.due = store.load, store.save, store.due

    def log(self, row: Mapping[str, Any]) -> None:
        """Nothing is kept."""

    def rewind(self, phase: str, epoch: int) -> None:
        """Nothing was kept."""


class _Part(SilentReporter):
    """Reports the training of one candidate as a part of the finals.

    Args:
        run: The run.
        behind: Epochs of all candidates that are behind when this one's epoch 0 would begin.
        total: Epochs of all candidates.
    """

    def __init__(self, run: Context, behind: int, total: int) -> None:
        self._progress, steps = run.progress, run.steps_an_epoch
        self._behind, self._total = behind * steps, total * steps

    def advance(self, done: int, total: int, **fields: float) -> None:
        """Steps of all candidates."""
        self._progress.advance(self._behind + done, self._total, loss=fields["loss"])
