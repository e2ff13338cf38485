"""The stages from the supernet to the found network: search, sample, extract, train."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from pgnas.nn import SmallNetwork, Supernet, extract_small
from pgnas.nn.outline import outline
from pgnas.seeds import derive_seed
from pgnas.stages.candidates import Candidate, ordered, rank
from pgnas.stages.context import Context
from pgnas.stages.finalists import hold_finals
from pgnas.stages.latency import meet_latency
from pgnas.stages.moments import from_tensors, to_tensors
from pgnas.stages.phases import PosteriorPhase
from pgnas.stages.racing import Raced, make_race, run_race
from pgnas.stages.ranking_budget import budget_for
from pgnas.stages.recipe import FORWARD_SHARE
from pgnas.stages.store import FolderStore
from pgnas.stages.training import Score, recalibrate
from pgnas.supernets import load_state

TRIALS = 8
"""Candidates on which ``--recalibrate auto`` compares validation accuracy with and without."""
RANKING_SHARE = 0.5
"""Of what a budget has left after the search ranking may cost this share; the rest is the found network's."""
FINALS_SHARE = 0.5
"""Of what a budget has left after the ranking finals may cost this share."""
TUNED_NAME = "finetuned.safetensors"
JOINT_NAME = "joint.safetensors"
"""The found network after it was trained together with others."""
Facts = dict[str, Any]


def search(run: Context, store: FolderStore) -> Facts:
    """Learn the posterior up to the decision; write it, its weights and their optimiser's moments."""
    supernet, recipe = run.supernet, run.recipe
    planned = recipe.planned_macs(run.full, recipe.decision_epoch)
    phase = recipe.posterior_phase(supernet, compiled=run.compile_choice("search", planned), begun=run.begun)
    run.train(phase, range(recipe.decision_epoch), store)
    moments = phase.moments()
    passed = phase.settle(run.calibration_batches)
    run.folder.save_tensors("posterior.safetensors", supernet.state_dict(), {"space": supernet.open().space})
    run.folder.save_tensors("momentum.safetensors", to_tensors(moments))
    val = run.score(supernet, run.data.estimate)
    run.folder.write_json("supernet.json", describe_supernet(supernet))
    estimating = _images(run.calibration_batches()) if passed else 0
    left = _what_left(phase, FORWARD_SHARE * estimating / recipe.examples_an_epoch)
    return {"val_accuracy": val.metric, "epochs": phase.stop(recipe.decision_epoch), **left}


def _what_left(phase: PosteriorPhase, estimating: float) -> Facts:
    """What the phase cost, in epochs of the full network, and how much of the supernet was left at its end.

    Re-estimating the statistics of averaged weights cost ``estimating`` of these more.
    """
    assert phase.spending is not None
    facts = {"spent": phase.spending.spent + estimating}
    if phase.shedder is not None:
        facts |= {"sheddings": phase.shedder.moments, "left": phase.shedder.macs / phase.spending.full}
    return facts


def spent_searching(run: Context) -> float:
    """What learning the posterior has cost, in epochs of the full network."""
    searched = run.folder.stage_facts("search")
    return float(str(searched.get("spent", searched["epochs"])))


def spent(run: Context) -> float:
    """What learning the posterior, ranking and training with others have cost, in epochs of the full network."""
    return spent_finding(run) + spent_together(run)


def spent_finding(run: Context) -> float:
    """What learning the posterior and ranking have cost, in epochs of the full network."""
    sampled = run.folder.stage_facts("sample")
    finals = float(str(sampled.get("finalists_spent", 0.0)))
    ranking = float(str(sampled.get("ranking_spent", 0.0)))
    return spent_searching(run) + ranking + finals


def spent_together(run: Context) -> float:
    """What training with others has cost for the found network, in epochs of the full network."""
    return float(str(run.folder.stage_facts("joint").get("spent", 0.0)))


def describe_supernet(supernet: Supernet) -> dict[str, Any]:
    """What is searched and what is not, as JSON."""
    report = supernet.report
    keep = supernet.keep_probabilities()
    options = {
        name: {option: round(float(p), 4) for option, p in zip(names, keep[name], strict=True)}
        for name, names in report.choices.items()
    }
    choices = {"choices": options} if options else {}
    return {
        "gates": {
            name: {"units": len(p), "keep": round(float(p.mean()), 4)}
            for name, p in keep.items()
            if name not in options
        },
        "gated": report.gated,
        **choices,
        "ungated": [[u.layer, u.reason] for u in report.ungated],
        "barriers": [[name, reason] for name, reason in report.barriers.items()],
        "notes": list(report.notes),
    }


def sample(run: Context, store: FolderStore) -> Facts:
    """Draw candidates from the posterior, rank them on the selection half of validation, and choose the best.

    Of the best ones the last is chosen by training each for a short while, if that is asked for.
    """
    supernet = run.posterior
    calibration = run.calibration_batches()
    drawn = _affordable(run, run.recipe.draw(supernet), _images(calibration))
    recalibrates, trials, tried = choose_recalibration(run, supernet, drawn[:TRIALS], calibration)
    used = calibration if recalibrates else None
    estimating = _images(used)
    score = run.recipe.scorer(run.held_out(run.data.select), used)
    if run.config.ranking == "exhaustive":
        ranked = _rank_all(run, drawn, tried, score, recalibrated=recalibrates)
        best_first, sample_of, raced = ordered(ranked, by=run.config.rank_by), ranked, Facts()
        spent_ranking = _ranking_spent(run, ((c, len(run.data.select), 1) for c in ranked), estimating)
    else:
        outcome = _race(run, drawn, used)
        ranked, best_first, raced = list(outcome.candidates), outcome.best_first, outcome.facts()
        sample_of = ranked[: len(outcome.result.pilot)]
        passed = zip(ranked, outcome.seen.tolist(), outcome.calls.tolist(), strict=True)
        spent_ranking = _ranking_spent(run, passed, estimating)
    if trials:
        ways: tuple[int, ...] = (0, _images(calibration))
        if run.config.ranking == "exhaustive":
            ways = tuple(images for images in ways if images != estimating)  # one way was the ranking's own
        tries = [(c, len(run.data.select), 1) for c in drawn[:TRIALS]]
        spent_ranking += sum(_ranking_spent(run, tries, images) for images in ways)
    winner, finals = best_first[0], Facts()
    if run.config.finalists:
        winner, finals = hold_finals(run, store, best_first, used, most=_most_for_finals(run, spent_ranking))
        if raced and winner is not best_first[0]:  # what the race says is of its own winner, and of images it chose
            raced = {name: value for name, value in raced.items() if name not in ("error", "statement")}
            (winner,) = rank(supernet, [winner], score, recalibrated=recalibrates, processes=run.processes)
            spent_ranking += _ranking_spent(run, [(winner, len(run.data.select), 1)], estimating)
    timed: Facts = {}
    if run.config.max_latency is not None:
        row, timed = run.processes.from_first(lambda: _timed(run, winner, score, recalibrated=recalibrates))
        winner = Candidate.from_row(row)
    run.folder.write_json("architecture.json", winner.architecture.to_json())
    if len(drawn) < run.config.candidates:
        run.progress.note(f"the posterior has only {len(drawn)} distinct architectures among its samples")
    values = torch.tensor([c.score.metric for c in sample_of if c.score is not None], dtype=torch.float64)
    assert winner.score is not None
    return {
        "count": len(ranked),
        "val_mean": float(values.mean()) if len(values) else None,
        "val_std": float(values.std(correction=0)) if len(values) else None,
        "val_best": winner.score.metric,
        "mode_val": next((c.score.metric for c in sample_of if c.is_mode and c.score is not None), None),
        "repaired": sum(c.repaired > 0 for c in ranked),
        "recalibrated": recalibrates,
        "trials": trials,
        "digest": winner.architecture.digest,
        "ranking_spent": spent_ranking,
        **raced,
        **finals,
        **timed,
    }


def _images(batches: Sequence[tuple[Tensor, Tensor]] | None) -> int:
    return sum(len(targets) for _, targets in batches or ())


def _most_for_finals(run: Context, spent_ranking: float) -> float:
    """What finals may cost: with a budget and a decision half of what is left for the found network."""
    budget = run.recipe.budget
    if budget is None or run.config.decision_share() is None:
        return math.inf
    return FINALS_SHARE * max(0.0, budget - spent_searching(run) - spent_ranking)


def _affordable(run: Context, drawn: list[Candidate], estimating: int) -> list[Candidate]:
    """With a budget those whose ranking leaves half of what is left of it for the found network, at least one.

    Races have a budget of their own, and a search without a decision is ranked after its budget.
    """
    budget, config = run.recipe.budget, run.config
    if budget is None or config.ranking != "exhaustive" or config.decision_share() is None:
        return drawn
    left, count = RANKING_SHARE * (budget - spent_searching(run)), 0
    for candidate in drawn:
        passed = [(candidate, len(run.data.select), 1)]
        left -= _ranking_spent(run, passed, estimating if config.recalibrate != "off" else 0)
        count += left >= 0
    if 0 < count < len(drawn):
        run.progress.note(f"of {len(drawn)} candidates the budget pays for ranking {count}")
    return drawn[: max(1, count)]


def _ranking_spent(run: Context, passed: Iterable[tuple[Candidate, float, float]], estimating: int) -> float:
    """What forward passes cost, in epochs of the full network.

    Args:
        run: The run.
        passed: A candidate, how many held-out images it has seen, and in how many parts.
        estimating: Images on which BatchNorm was re-estimated before each part.
    """
    images = sum((seen + estimating * parts) * run.recipe.cost(candidate.counts) for candidate, seen, parts in passed)
    return FORWARD_SHARE * images / run.recipe.examples_an_epoch


def _rank_all(
    run: Context,
    drawn: Sequence[Candidate],
    tried: Sequence[Candidate],
    score: Callable[[nn.Module], Score],
    *,
    recalibrated: bool,
) -> list[Candidate]:
    """Score every candidate on all of the selection half, those of a killed session and the trials aside."""
    ranked = _ranked_before(run, drawn)
    remaining = rank(
        run.posterior,
        drawn[max(len(ranked), len(tried)) :],
        score,
        recalibrated=recalibrated,
        processes=run.processes,
    )
    for candidate in itertools.chain(tried[len(ranked) :], remaining):
        ranked.append(candidate)
        run.folder.append_line("candidates.jsonl", candidate.to_row())
        top = max(c.score.metric for c in ranked if c.score is not None)
        run.progress.advance(len(ranked), len(drawn), best=top)
    return ranked


def _race(run: Context, drawn: Sequence[Candidate], calibration: Sequence[tuple[Tensor, Tensor]] | None) -> Raced:
    """Race the candidates on the selection half; those of a killed session go on from its last state."""
    config, select = run.config, run.data.select
    race = make_race(
        config.ranking,
        drawn,
        len(select),
        budget=budget_for(config, len(drawn)),
        error=config.ranking_error,
        seed=derive_seed(config.seed, "race"),
    )
    judge = run.recipe.judge(lambda examples: run.held_out(select.take(examples)), calibration)
    total = len(drawn) * len(select)
    begun = run.processes.from_first(run.folder.file("race.safetensors").exists)
    state = run.folder.load_tensors("race.safetensors")[0] if begun else None
    raced = run_race(
        race,
        run.posterior,
        drawn,
        judge,
        recalibrated=calibration is not None,
        processes=run.processes,
        state=state,
        keep=lambda tensors: run.folder.save_tensors("race.safetensors", tensors),
        progress=lambda passes: run.progress.advance(passes, total),
    )
    run.folder.truncate_lines("candidates.jsonl", 0)
    for candidate in raced.candidates:
        run.folder.append_line("candidates.jsonl", candidate.to_row())
    return raced


def _timed(
    run: Context, winner: Candidate, score: Callable[[nn.Module], Score], *, recalibrated: bool
) -> tuple[Facts, Facts]:
    """The row of the winner, brought under the latency cap, and what was timed on the way."""
    measured = meet_latency(run.recipe, run.posterior, winner, score, run.example, recalibrated=recalibrated)
    timed = {"latency": measured.seconds, "full_latency": measured.full_seconds, "timed": measured.attempts}
    return measured.candidate.to_row(), timed


def choose_recalibration(
    run: Context, supernet: Supernet, candidates: Sequence[Candidate], calibration: Sequence[tuple[Tensor, Tensor]]
) -> tuple[bool, dict[str, float], list[Candidate]]:
    """Whether to re-estimate BatchNorm: as asked, or where it raises the mean validation accuracy of some.

    Returns:
        The choice, the means compared, and the candidates that were scored by the chosen way while finding out.
    """
    if run.config.recalibrate != "auto":
        return run.config.recalibrate == "on", {}, []
    has_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in supernet.modules())
    if not has_norm:
        return False, {}, []
    means, scored = {}, {}
    for name, batches in (("plain", None), ("recalibrated", calibration)):
        score = run.recipe.scorer(run.held_out(run.data.select), batches)
        recalibrated = batches is not None
        scored[name] = list(rank(supernet, candidates, score, recalibrated=recalibrated, processes=run.processes))
        scores = [c.score.metric for c in scored[name] if c.score is not None]
        means[name] = sum(scores) / len(scores)
    recalibrates = means["recalibrated"] > means["plain"]
    return recalibrates, means, scored["recalibrated" if recalibrates else "plain"]


def _ranked_before(run: Context, drawn: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that a killed session has scored already: a prefix of those drawn."""
    ranked = [Candidate.from_row(row) for row in run.folder.read_lines("candidates.jsonl")]
    same = 0
    while same < min(len(ranked), len(drawn)) and ranked[same].architecture == drawn[same].architecture:
        same += 1
    run.folder.truncate_lines("candidates.jsonl", same)
    return ranked[:same]


def found_network(run: Context, *, re_estimated: bool = False) -> SmallNetwork:
    """The chosen architecture's network with the posterior's weights, on the device, made to be re-estimated or not."""
    small = extract_small(run.posterior, run.architecture, heads=True, re_estimated=re_estimated)
    run.engine.place(small.module)
    return small


def extracted_network(run: Context) -> SmallNetwork:
    """The found network as extraction, or training together with others after it, left it, on the device.

    Raises:
        RunFolderError: It has not been extracted yet.
        FileError: Its file holds another network.
    """
    name = JOINT_NAME if run.folder.stage_done("joint") else "extracted.safetensors"
    path = run.folder.require(name, stage="extract")
    small = found_network(run)
    load_state(small.module, run.folder.load_tensors(name)[0], source=str(path))
    return small


def trained_network(run: Context, *, tuned: bool = True) -> nn.Module:
    """The found network as training, or the fine-tuning after it (unless ``tuned`` is off), left it, on the device.

    Raises:
        RunFolderError: It has not been trained yet.
    """
    tuned = tuned and run.folder.stage_done("finetune")
    name = TUNED_NAME if tuned else "found.safetensors"
    path = run.folder.require(name, stage="finetune" if tuned else "train")
    network = found_network(run).module
    load_state(network, run.folder.load_tensors(name)[0], source=str(path))
    return network


def extract(run: Context, store: FolderStore) -> Facts:
    """Build the small network; re-estimate BatchNorm if the ranking did."""
    small = found_network(run)
    plain = run.score(small.module, run.data.select)
    calibration = run.ranking_calibration()
    if calibration is not None:
        small = found_network(run, re_estimated=True)
        recalibrate(small.module, calibration, engine=run.engine)
    after = run.score(small.module, run.data.select)
    run.folder.save_tensors("extracted.safetensors", small.module.state_dict())
    drawn = [asdict(operation) for operation in outline(run.posterior, run.architecture)]
    run.folder.write_json("operations.json", {"operations": drawn})
    return {**asdict(run.found), "val_before_calibration": plain.metric, "val_frozen": after.metric}


def train(run: Context, store: FolderStore) -> Facts:
    """Train the found network, without noise, for the epochs that remain."""
    small = extracted_network(run)
    network = small.module
    decided = int(str(run.folder.stage_facts("search")["epochs"]))
    epochs, pace = run.recipe.remaining(
        decided, spent(run), run.found, searched=spent_searching(run), shared=spent_together(run)
    )
    if len(epochs) > 0 and any(True for _ in network.parameters()):
        moments, _ = run.folder.load_tensors("momentum.safetensors")
        planned = run.recipe.planned_macs(run.found, len(epochs))
        compiled = run.compile_choice("train", planned)
        phase = run.recipe.found_phase(small, from_tensors(moments), compiled=compiled, pace=pace)
        run.train(phase, epochs, store)
    run.folder.save_tensors("found.safetensors", network.state_dict())
    val = run.score(network, run.data.estimate)
    return {"epochs": len(epochs), "val_accuracy": val.metric}
