"""Ranking by a race: the same winner for fewer passes, shared out, killed and resumed."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import pgnas
from pgnas import stages
from pgnas.architecture import Architecture
from pgnas.bayes import elimination
from pgnas.config import RunConfig
from pgnas.errors import ConfigError, InputError, RunFolderError
from pgnas.nn import Counts
from pgnas.processes import Processes
from pgnas.progress import SilentReporter
from pgnas.run_folder import RunFolder
from pgnas.stages import racing, recipe, searching
from pgnas.stages.candidates import Candidate
from pgnas.stages.context import Context
from pgnas.stages.engine import make_engine
from pgnas.stages.fitting import draw
from pgnas.stages.racing import Raced, _scored, make_race, run_race, units_kept
from pgnas.stages.training import judge_examples

IMAGES = 400


def network():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))


@pytest.fixture
def searched():
    """A supernet, candidates, and the truth about each: right or wrong on every image."""
    torch.manual_seed(0)
    supernet = pgnas.supernet(network(), torch.randn(2, 1, 8, 8))
    supernet.gates.fill_(0.7)
    drawn = draw(supernet, 40, {}, generator=torch.Generator().manual_seed(0))
    quality = torch.linspace(0.3, 0.9, len(drawn))[torch.randperm(len(drawn))]
    truth = (torch.rand(len(drawn), IMAGES) < quality[:, None]).float()
    return supernet, drawn, truth


class Judge:
    """Knows the truth; recognises a candidate by the order in which it is asked, as the race is run."""

    def __init__(self, monkeypatch, drawn, truth):
        self.truth, self.passes = truth, 0
        self._arm = {c.architecture: arm for arm, c in enumerate(drawn)}
        extract = racing.extract_small

        def remember(supernet, architecture, **options):
            self._now = self._arm[architecture]
            return extract(supernet, architecture, **options)

        monkeypatch.setattr(racing, "extract_small", remember)

    def __call__(self, module, images):
        self.passes += len(images)
        scores = self.truth[self._now, images]
        return scores, 1 - float(scores.mean())


def race(ranking, drawn, **options):
    return make_race(ranking, drawn, IMAGES, **({"budget": 0.3, "error": 0.05, "seed": 0} | options))


@pytest.mark.parametrize(("ranking", "most"), [("exhaustive", 1.0), ("halving", 0.3), ("elimination", 0.9)])
def test_the_best_is_found_with_the_passes_stated(searched, monkeypatch, ranking, most):
    supernet, drawn, truth = searched
    judge = Judge(monkeypatch, drawn, truth)
    raced = run_race(race(ranking, drawn), supernet, drawn, judge, processes=Processes())
    best = int(truth.mean(1).argmax())
    assert raced.winner.architecture == drawn[best].architecture
    assert raced.winner.score.metric == pytest.approx(float(truth[best].mean()))
    assert raced.winner.score.loss == pytest.approx(1 - float(truth[best].mean()), abs=1e-6)
    assert raced.winner.score.count == IMAGES
    facts = raced.facts()
    assert facts["passes"] == judge.passes
    assert facts["passes_share"] == judge.passes / truth.numel() <= most
    assert [c.architecture for c in raced.candidates] == [c.architecture for c in drawn]


@pytest.mark.parametrize("ranking", ["halving", "elimination"])
def test_a_killed_race_goes_on_from_its_last_state(searched, monkeypatch, ranking):
    supernet, drawn, truth = searched
    judge = Judge(monkeypatch, drawn, truth)
    monkeypatch.setattr(racing, "PART", 7)
    whole = run_race(race(ranking, drawn), supernet, drawn, judge, processes=Processes())
    kept = []

    def keep(state):
        kept.append({name: value.clone() for name, value in state.items()})
        if len(kept) == 3:
            raise KeyboardInterrupt

    spent = judge.passes
    with pytest.raises(KeyboardInterrupt):
        run_race(race(ranking, drawn), supernet, drawn, judge, processes=Processes(), keep=keep)
    again = run_race(race(ranking, drawn), supernet, drawn, judge, processes=Processes(), state=kept[-1])
    assert again.candidates == whole.candidates
    assert again.winner == whole.winner
    assert judge.passes == 2 * spent


def test_the_state_of_another_race_is_refused(searched, monkeypatch):
    supernet, drawn, truth = searched
    judge, kept = Judge(monkeypatch, drawn, truth), []
    run_race(race("halving", drawn), supernet, drawn, judge, processes=Processes(), keep=kept.append)
    with pytest.raises((InputError, RunFolderError), match="of "):
        run_race(race("halving", drawn[:30]), supernet, drawn[:30], judge, processes=Processes(), state=kept[0])


def test_a_budget_too_small_for_so_many_candidates_is_refused(searched):
    with pytest.raises(InputError, match="budget"):
        race("halving", searched[1], budget=0.001)


def test_every_example_is_judged_once_and_the_network_is_left_as_it_was():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)).train()
    images, labels = torch.randn(50, 1, 8, 8), torch.randint(10, (50,))
    loader = [(images[:32], labels[:32]), (images[32:], labels[32:])]
    engine = make_engine("cpu", "fp32")
    scores, loss = judge_examples(module, loader, engine=engine, loss=nn.functional.cross_entropy)
    assert module.training
    outputs = module.eval()(images)
    assert torch.equal(scores, (outputs.argmax(1) == labels).float())
    assert loss == pytest.approx(nn.functional.cross_entropy(outputs, labels).item(), rel=1e-5)
    with pytest.raises(ConfigError, match="metric"):
        judge_examples(
            module, loader, engine=engine, loss=nn.functional.cross_entropy, metric=lambda out, y: torch.tensor(0.5)
        )


@pytest.mark.parametrize("ranking", ["halving", "elimination"])
def test_a_run_ranks_by_a_race(tmp_path, ranking):
    settings = {"epochs": 2, "candidates": 12, "ranking": ranking, "ranking_budget": 0.6, "device": "cpu"}
    run = pgnas.run(model=network(), data="digits", out=tmp_path / "run", max_macs="60%", **settings)
    found = run["candidates"]
    rows = [json.loads(line) for line in (run.path / "candidates.jsonl").read_text().splitlines()]
    assert len(rows) == found["count"] == 12
    images = max(row["count"] for row in rows)
    winner = next(row for row in rows if row["digest"] == found_digest(run))
    assert winner["count"] == images
    assert winner["accuracy"] == found["val_best"]
    assert 0 < found["passes_share"] <= (0.6 if ranking == "halving" else 1.0)
    assert found["passes"] == round(found["passes_share"] * 12 * images)
    assert "race" in (run.path / "report.html").read_text()
    again = pgnas.run(model=network(), data="digits", out=tmp_path / "again", max_macs="60%", **settings)
    assert len(again["candidates"]["statement"]) > 10


def found_digest(run):
    return json.loads((run.path / "result.json").read_text())["found"]["digest"]


def test_the_units_kept_are_those_of_the_architectures(searched):
    drawn = searched[1]
    kept = units_kept(drawn)
    for row, candidate in zip(kept.tolist(), drawn, strict=True):
        architecture = candidate.architecture
        assert row == [flag for name in architecture.sizes for flag in architecture.flags(name)]


def test_who_stayed_longer_comes_first_whatever_an_early_sample_saw():
    rng = torch.Generator().manual_seed(0)
    arms, images = 4000, 200
    hard, good = 2 * torch.randn(images, generator=rng), 0.6 * torch.randn(arms, 1, generator=rng)
    right = (torch.rand(arms, images, generator=rng) < torch.sigmoid(hard + good + 1)).float()
    race = elimination(arms, images, delta=0.05, generator=rng)
    while (request := race.request()) is not None:
        race = race.observe(right[request.arms][:, request.images])
    drawn = [Candidate(Architecture({"a": arms}, {"a": (arm,)}), Counts(1, 1), False, 0) for arm in range(arms)]
    raced = Raced(_scored(drawn, race, torch.ones(arms, 2, dtype=torch.float64)), race.result(), right, right)
    order = [candidate.architecture.kept["a"][0] for candidate in raced.best_first]
    assert len(race.result().pilot) > 0
    assert sorted(order) == list(range(arms))
    assert (race.standing.left[order].diff() <= 0).all()
    assert order[0] == race.result().winner
    assert raced.facts()["runner_up"] == drawn[order[1]].architecture.digest


def facts_of(run):
    return {name: stage["facts"] for name, stage in json.loads((run.path / "stages.json").read_text()).items()}


@pytest.mark.parametrize("ranking", ["exhaustive", "halving"])
def test_ranking_costs_the_images_that_candidates_have_seen(tmp_path, ranking):
    settings = {"epochs": 1, "candidates": 40, "ranking": ranking, "ranking_budget": 0.1, "recalibrate": "off"}
    run = stages.run(
        RunConfig(model="multibranch-resnet:width=4,stages=1,blocks=1", data="digits", out=str(tmp_path / "run"),
                  max_macs="60%", device="cpu", initial_drop=0.3, **settings), until="sample",
    )  # fmt: skip
    rows = [json.loads(line) for line in (run.path / "candidates.jsonl").read_text().splitlines()]
    with RunFolder.open(run.path, writer=False) as folder:
        context = Context(folder, SilentReporter())
        images, examples, full = len(context.data.select), context.recipe.examples_an_epoch, context.full.macs
    shares, found = [row["macs"] / full for row in rows], facts_of(run)["sample"]
    if ranking == "exhaustive":
        assert found["ranking_spent"] == pytest.approx(sum(shares) * images / 3 / examples)
    else:
        passes = found["passes"]
        assert passes < 0.2 * len(rows) * images
        assert min(shares) * passes / 3 / examples <= found["ranking_spent"] <= max(shares) * passes / 3 / examples


@pytest.mark.parametrize("ranking", ["exhaustive", "halving"])
def test_re_estimation_and_trials_cost_the_images_that_pass(tmp_path, monkeypatch, ranking):
    """With a batch larger than an eighth of the data there are fewer calibration images than eight batches hold."""
    passed = []
    for name in ("judge_examples", "evaluate", "recalibrate"):
        monkeypatch.setattr(recipe, name, counting(getattr(recipe, name), passed))
    run = stages.run(
        RunConfig(
            model="multibranch-resnet:width=4,stages=1,blocks=1", data="digits", out=str(tmp_path / "run"), epochs=1,
            candidates=20, max_macs="60%", device="cpu", initial_drop=0.3, batch_size=512, ranking=ranking,
            ranking_budget=0.2, recalibrate="auto", decide_at="never",
        ), until="search",
    )  # fmt: skip
    passed.clear()
    stages.run_stage(run.path, "sample")
    with RunFolder.open(run.path, writer=False) as folder:
        context = Context(folder, SilentReporter())
        examples, full = context.recipe.examples_an_epoch, context.full.macs
    assert facts_of(run)["sample"]["ranking_spent"] == pytest.approx(sum(passed) / full / 3 / examples, rel=1e-6)


def counting(function, passed):
    """The function, noting the multiply-adds of what passes through the network that it is given."""

    def counted(network, *rest, **options):
        macs = pgnas.measure(network, torch.zeros(1, 1, 8, 8)).macs
        handle = network.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0]) * macs))
        try:
            return function(network, *rest, **options)
        finally:
            handle.remove()

    return counted


def test_a_budget_that_ranking_would_use_up_ranks_fewer(tmp_path):
    config = RunConfig(
        model="multibranch-resnet:width=4,stages=1,blocks=1", data="digits", out=str(tmp_path / "run"), budget="4",
        max_macs="60%", device="cpu", initial_drop=0.3, candidates=64, recalibrate="on", shed="off",
    )  # fmt: skip
    run = stages.run(config, until="train")
    facts = facts_of(run)
    searched, sampled, trained = (facts[name] for name in ("search", "sample", "train"))
    left = 4 - searched["spent"]
    assert 1 < sampled["count"] < 64
    assert 0.4 * left < sampled["ranking_spent"] <= 0.5 * left
    rows = [json.loads(line) for line in (run.path / "candidates.jsonl").read_text().splitlines()]
    assert len(rows) == sampled["count"]
    assert trained["epochs"] >= 2


def test_what_the_finals_choose_after_a_race_is_scored_on_all_images(tmp_path, monkeypatch):
    def last(run, store, best_first, calibration, *, most):
        return best_first[-1], {"finalists": 2, "finalists_spent": 0.0, "runner_up": best_first[0].architecture.digest}

    monkeypatch.setattr(searching, "hold_finals", last)
    settings = {"epochs": 2, "candidates": 12, "ranking": "halving", "ranking_budget": 0.6, "recalibrate": "off"}
    run = pgnas.run(model=network(), data="digits", out=tmp_path / "run", max_macs="60%", finalists=2, **settings)
    found = run["candidates"]
    rows = {r["digest"]: r for r in map(json.loads, (run.path / "candidates.jsonl").read_text().splitlines())}
    images = max(row["count"] for row in rows.values())
    assert rows[found_digest(run)]["count"] < images
    assert found["val_best"] == run["decision"]["val_before_calibration"]  # of all images
    assert "statement" not in found
    assert "race" in (run.path / "report.html").read_text()
