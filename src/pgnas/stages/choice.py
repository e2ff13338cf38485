"""Uncertainty of the choice: what the best of many candidates is worth on images that the selection never saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pgnas.architecture import Architecture
from pgnas.bayes import Interval, prediction, probability_better, wilson
from pgnas.nn import extract_small
from pgnas.stages.candidates import Candidate, ordered
from pgnas.stages.context import Context

Facts = dict[str, Any]


def choice(run: Context) -> Facts:
    """The chosen candidate and the runner-up on the half of validation that no selection saw, before further training.

    The optimism is the score that the choice was made by minus the score there. The probability that the runner-up is
    truly better is Bayesian: of paired answers with a flat prior, :func:`pgnas.bayes.probability_better`.
    """
    selected = run.folder.stage_facts("sample")["val_best"]
    chosen = run.architecture
    winner = _answers(run, chosen)
    right, images = int(winner.sum()), len(winner)
    facts: Facts = {
        "candidates": int(str(run.folder.stage_facts("sample")["count"])),
        "selected_accuracy": float(str(selected)),
        "selected_images": len(run.data.select),
        "accuracy": right / images,
        "interval": list(wilson(right, images)),
        "images": images,
        "optimism": float(str(selected)) - right / images,
    }
    second = _runner_up(run, chosen)
    return facts if second is None else facts | {"runner_up": _compared(run, second, winner)}


def _runner_up(run: Context, chosen: Architecture) -> Candidate | None:
    rows = [Candidate.from_row(row) for row in run.folder.read_lines("candidates.jsonl")]
    second = run.folder.stage_facts("sample").get("runner_up")  # told by the finals, where there were some
    ranked = [c for c in rows if c.architecture.digest == second] or ordered(rows, by=run.config.rank_by)
    return next((candidate for candidate in ranked if candidate.architecture != chosen), None)


def _compared(run: Context, candidate: Candidate, winner: Tensor) -> Facts:
    other = _answers(run, candidate.architecture)
    wins, losses = int((other & ~winner).sum()), int((winner & ~other).sum())
    assert candidate.score is not None
    return {
        "digest": candidate.architecture.digest,
        "selected_accuracy": candidate.score.metric,
        "accuracy": float(other.double().mean()),
        "right_where_the_chosen_is_wrong": wins,
        "wrong_where_the_chosen_is_right": losses,
        "probability_better": probability_better(wins, losses),
    }


def _answers(run: Context, architecture: Architecture) -> Tensor:
    """Whether the architecture's network, as it was ranked, is right about each image of the untouched half, bool."""
    untouched = run.data.estimate
    calibration = run.ranking_calibration()
    judge = run.recipe.judge(lambda images: run.held_out(untouched.take(images)), calibration)
    small = extract_small(run.posterior, architecture, re_estimated=calibration is not None)
    scores, _ = judge(small.module, torch.arange(len(untouched)))
    return scores > 0.5


def interval_of(accuracy: float, images: int) -> list[float]:
    """Wilson's 95 % interval of an accuracy, as JSON."""
    return list(wilson(round(accuracy * images), images))


def predicted_interval(accuracy: float, images: int, future: int) -> list[float]:
    """95 % interval for the accuracy on ``future`` further images, as JSON; see :func:`pgnas.bayes.prediction`."""
    found: Interval = prediction(round(accuracy * images), images, future)
    return list(found)


def sentence(result: Mapping[str, Any]) -> str:
    """The result in one plain sentence: accuracy with its interval, cost, and the full network if it was trained."""
    found, full = result["found"], result["full"]
    low, high = found["test_interval"]
    share = f"{100 * found['macs'] / max(1, full['macs']):.3g}"
    text = (
        f"found network: {100 * found['test_accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] "
        f"at {share} % of the multiply-adds"
    )
    trained = (result.get("baselines") or {}).get("full") or {}
    if trained.get("test_accuracy") is None:
        return text
    return f"{text}; the full network trained alike: {100 * trained['test_accuracy']:.1f} %"
