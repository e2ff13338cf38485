"""What a run says of its choice, against the networks themselves; the sentence, word for word."""

from __future__ import annotations

import json

import pytest
import torch

import pgnas
from pgnas.architecture import Architecture
from pgnas.bayes import prediction, probability_better, wilson
from pgnas.config import RunConfig
from pgnas.progress import SilentReporter
from pgnas.run_folder import RunFolder
from pgnas.stages import choice, finishing, run
from pgnas.stages.candidates import Candidate, ordered
from pgnas.stages.context import Context
from pgnas.stages.training import Score


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finishing, "FORMATS", {})  # they take seconds and are not looked at
        return run(
            RunConfig(
                model="multibranch-resnet:width=6,stages=2,blocks=1",
                data="digits",
                out=str(tmp_path_factory.mktemp("choice") / "run"),
                epochs=5,
                batch_size=64,
                granularity="group",
                decide_at="never",
                candidates=6,
                recalibrate="off",
            )
        )


def answers(result, architecture):
    """Of the architecture's network with the posterior's weights, on the half that selection never saw."""
    with RunFolder.open(result.path) as folder:
        supernet = Context(folder, SilentReporter()).posterior.eval()
        data = pgnas.load_data("digits")
        with supernet.fixed(architecture), torch.no_grad():
            predicted = supernet(data.preprocessing.normalise(data.estimate.images)).argmax(1)
        return predicted == data.estimate.labels


def test_the_chosen_and_the_runner_up_are_compared_on_untouched_images(result):
    rows = [json.loads(line) for line in (result.path / "candidates.jsonl").read_text().splitlines()]
    found = result["choice"]
    rows.sort(key=lambda row: (-row["accuracy"], row["loss"], row["macs"]))
    assert rows[1]["digest"] == found["runner_up"]["digest"]
    winner, second = (answers(result, Architecture.from_json(row["architecture"])) for row in rows[:2])
    n = len(winner)
    assert found["accuracy"] == pytest.approx(float(winner.double().mean()))
    assert found["interval"] == pytest.approx(wilson(int(winner.sum()), n))
    assert found["optimism"] == pytest.approx(rows[0]["accuracy"] - found["accuracy"])
    wins, losses = int((second & ~winner).sum()), int((winner & ~second).sum())
    assert found["runner_up"]["probability_better"] == pytest.approx(probability_better(wins, losses))
    assert found["runner_up"]["accuracy"] - found["accuracy"] == pytest.approx((wins - losses) / n)


def test_the_intervals_of_the_found_network(result):
    found = result["found"]
    k, n, m = round(found["val_accuracy"] * found["val_images"]), found["val_images"], found["test_images"]
    assert found["predicted_test_interval"] == pytest.approx(prediction(k, n, m))
    assert found["val_interval"] == pytest.approx(wilson(k, n))
    assert found["test_interval"][0] < found["test_accuracy"] < found["test_interval"][1]
    assert result["sentence"] in result.summary()
    assert any("runner-up" in line for line in result.summary())


def test_the_sentence():
    values = {
        "found": {"test_accuracy": 0.8123, "test_interval": [0.804, 0.82], "macs": 400},
        "full": {"macs": 1000},
    }
    assert choice.sentence(values) == "found network: 81.2 % [80.4, 82.0] at 40 % of the multiply-adds"
    trained = values | {"baselines": {"full": {"test_accuracy": 0.8141}}}
    assert choice.sentence(trained).endswith("; the full network trained alike: 81.4 %")
    assert choice.sentence(values | {"baselines": {"uniform": {"test_accuracy": 0.5}}}) == choice.sentence(values)


def test_who_was_dropped_from_a_race_comes_after_who_was_not(result):
    row = json.loads((result.path / "candidates.jsonl").read_text().splitlines()[0])
    plain = Candidate.from_row(row)
    scored = [
        Candidate(plain.architecture, plain.counts, False, 0, Score(metric, 0.1, count))
        for metric, count in ((0.9, 10), (0.7, 100), (0.8, 100))
    ]
    assert ordered(scored) == [scored[2], scored[1], scored[0]]
