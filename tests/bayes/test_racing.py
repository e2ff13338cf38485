"""Racing spends what it says, errs no more often than it says, and can be stopped, split and resumed anywhere."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from pgnas.bayes import HalvingPlan, Race, RaceResult, elimination, exhaustive, halving, plan_halving
from pgnas.bayes._elimination import increments, log_wealth
from pgnas.bayes._image_order import WEIGHT_FLOOR, exponential_clocks, image_order, image_weights, inclusion
from pgnas.bayes.racing import least_budget
from pgnas.errors import InputError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(race: Race, correct: Tensor) -> RaceResult:
    """Answer all requests from a matrix (arms, images)."""
    while (request := race.request()) is not None:
        race = race.observe(correct[request.arms][:, request.images])
    return race.result()


def answers(arms: int, images: int, seed: int, *, spread: float = 0.05, shared: float = 0.8) -> Tensor:
    """Right answers of arms of different quality, on images of different difficulty."""
    generator = seeded(seed)
    difficulty = torch.rand(images, generator=generator)
    alone = torch.rand(arms, images, generator=generator)
    threshold = 0.7 + spread * torch.randn(arms, 1, generator=generator)
    return shared * difficulty + (1 - shared) * alone < threshold


RACES: dict[str, Callable[[int, int, torch.Generator], Race]] = {
    "exhaustive": lambda arms, images, g: exhaustive(arms, images, generator=g),
    "halving": lambda arms, images, g: halving(arms, images, budget=0.4, batch=3, generator=g),
    "halving with a pilot": lambda arms, images, g: halving(arms, images, budget=0.5, pilot=5, generator=g),
    "elimination": lambda arms, images, g: elimination(arms, images, delta=0.1, batch=10, generator=g),
    "elimination with a pilot": lambda arms, images, g: elimination(
        arms, images, delta=0.1, epsilon=0.02, batch=10, pilot=7, generator=g
    ),
}


@pytest.mark.parametrize("kind", RACES)
def test_a_race_cut_into_parts_saved_and_resumed_ends_the_same(kind: str) -> None:
    correct = answers(37, 150, 1)
    whole = run(RACES[kind](37, 150, seeded(2)), correct)
    race = RACES[kind](37, 150, seeded(2))
    while (request := race.request(limit=8)) is not None:
        parts = [request.shard(rank, 3) for rank in range(3)]
        race = race.observe(torch.cat([correct[part.arms][:, part.images].float() for part in parts]))
        race = RACES[kind](37, 150, seeded(99)).resume(load(save(race.state())))
    cut = race.result()
    assert (cut.winner, cut.passes, cut.statement) == (whole.winner, whole.passes, whole.statement)
    assert torch.equal(cut.order, whole.order)
    assert torch.equal(cut.means, whole.means)


@pytest.mark.parametrize("kind", RACES)
def test_the_winner_has_seen_everything_and_the_result_adds_up(kind: str) -> None:
    correct = answers(37, 150, 3)
    before = correct.clone()
    result = run(RACES[kind](37, 150, seeded(4)), correct)
    assert torch.equal(correct, before)
    assert result.counts[result.winner] == 150
    assert result.means[result.winner].item() == pytest.approx(correct[result.winner].double().mean().item())
    assert result.winner == result.order[0]
    assert sorted(result.order.tolist()) == list(range(37))
    assert result.passes == int(result.counts.sum()) + 150 * result.pilot.numel()
    assert result.share == pytest.approx(result.passes / (37 * 150))
    assert result.counts[result.order].diff().max() <= 0  # who stayed longer comes first
    assert torch.allclose(result.pilot, correct[: result.pilot.numel()].double().mean(1))


@pytest.mark.parametrize("kind", RACES)
def test_an_arm_that_is_right_wherever_others_are_is_never_lost(kind: str) -> None:
    correct = answers(37, 150, 5)
    correct[23] = correct.any(0)
    assert run(RACES[kind](37, 150, seeded(6)), correct).winner == 23


@pytest.mark.parametrize("kind", RACES)
def test_among_equals_the_first_arm_wins(kind: str) -> None:
    correct = answers(1, 150, 7).expand(37, 150)
    assert run(RACES[kind](37, 150, seeded(8)), correct).order.tolist() == list(range(37))


@pytest.mark.parametrize("kind", ["exhaustive", "halving", "elimination"])
def test_one_candidate_wins_and_is_scored(kind: str) -> None:
    result = run(RACES[kind](1, 20, seeded(0)), answers(1, 20, 0))
    assert (result.winner, result.passes, result.share) == (0, 20, 1.0)


def test_exhaustive_is_the_exact_order() -> None:
    correct = answers(50, 80, 9)
    result = run(exhaustive(50, 80, generator=seeded(1)), correct)
    assert torch.equal(result.order, torch.argsort(correct.sum(1), descending=True, stable=True))
    assert (result.share, result.error) == (1.0, 0.0)


@given(st.integers(2, 3000), st.integers(1, 600), st.floats(0.001, 1.0), st.integers(1, 40))
def test_a_plan_halves_ends_with_all_images_and_keeps_the_budget(
    arms: int, images: int, budget: float, batch: int
) -> None:
    batch = min(batch, images)
    try:
        plan = plan_halving(arms, images, budget, batch=batch, pilot=0)
    except InputError:
        assert budget * arms * images < arms * batch + images - batch + 1
        return
    assert plan.passes <= budget * arms * images + 1e-6
    assert plan.sizes[0] == arms
    assert plan.stops[-1] == images
    assert list(plan.sizes) == sorted(set(plan.sizes), reverse=True)
    assert list(plan.stops) == sorted(set(plan.stops))
    assert all(stop % batch == 0 for stop in plan.stops[:-1])
    if len(plan.sizes) > 2:
        assert all(kept == math.ceil(size / 2) for size, kept in itertools.pairwise(plan.sizes))


@given(st.integers(1, 3000), st.integers(1, 600), st.integers(1, 40), st.sampled_from([None, 0]))
def test_the_least_budget_suffices_and_less_does_not(arms: int, images: int, batch: int, pilot: int | None) -> None:
    batch = min(batch, images)
    least = least_budget(arms, images, batch=batch, pilot=pilot)
    plan = plan_halving(arms, images, least, batch=batch, pilot=pilot)
    assert plan.passes <= least * arms * images + 1e-6
    if least > 0.0001 and arms > 1:
        with pytest.raises(InputError, match=f"spend {100 * least:.2f} % or more"):
            plan_halving(arms, images, least - 0.0001, batch=batch, pilot=pilot)


def test_a_pilot_is_part_of_the_least_budget() -> None:
    assert least_budget(250, 2) == 0.57  # 17 arms on both images, one image for each arm, one more for the winner
    with pytest.raises(InputError, match=r"all 2 for the winner and 16 others, got 52\.00%; spend 57\.00 % or more"):
        plan_halving(250, 2, 0.52)


@pytest.mark.parametrize(("arms", "budget"), [(10_000, 0.05), (10_000, 0.2), (777, 0.1), (64, 0.3)])
def test_a_plan_uses_its_budget(arms: int, budget: float) -> None:
    plan = plan_halving(arms, 5000, budget)
    assert 0.97 * budget < plan.passes / (arms * 5000) <= budget
    assert plan.pilot / arms <= budget / 8


def test_the_passes_of_a_race_are_those_planned() -> None:
    result = run(halving(333, 400, budget=0.2, batch=7, generator=seeded(3)), answers(333, 400, 3))
    assert result.passes == plan_halving(333, 400, 0.2, batch=7).passes
    assert result.error is None


def test_the_bound_of_halving_holds_and_says_something() -> None:
    plan = HalvingPlan((16, 8, 4, 2), (60, 120, 240, 400))
    correct = torch.rand(16, 400, generator=seeded(0)) < 0.6
    correct[0] = torch.rand(400, generator=seeded(1)) < 0.88
    bound = plan.error_bound(correct.double().mean(1))
    assert 0.0 < bound < 0.9
    lost = 0
    for seed in range(2000):
        order = torch.randperm(400, generator=seeded(seed))
        sums = correct[:, order].cumsum(1)
        alive = torch.arange(16)
        for kept, stop in zip(plan.sizes[1:], plan.stops[:-1], strict=True):
            alive = alive[sums[alive, stop - 1].argsort(descending=True, stable=True)[:kept]]
        lost += 0 not in alive.tolist()
    assert lost / 2000 <= bound
    assert plan.error_bound(torch.full((16,), 0.5)) == 1.0
    assert HalvingPlan((16,), (400,)).error_bound(torch.rand(16)) == 0.0


def test_images_that_decide_nothing_come_last() -> None:
    pilot = torch.tensor([[1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]])
    weights = image_weights(pilot)
    assert weights[2] == 1.0
    assert weights[0] == pytest.approx(float(weights[1]))
    assert weights[0] < weights[3] < weights[2]
    assert weights.min() >= WEIGHT_FLOOR


def test_the_order_samples_in_proportion_to_the_weights() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    generator, counts = seeded(0), torch.zeros(4, 4)
    for _ in range(4000):
        first, second = image_order(exponential_clocks(4, generator), weights)[:2].tolist()
        counts[first, second] += 1
    assert torch.allclose(counts.sum(1) / 4000, (weights / 10).float(), atol=0.03)
    assert torch.allclose(counts[3] / counts[3].sum(), torch.tensor([1 / 6, 2 / 6, 3 / 6, 0.0]), atol=0.05)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0, 1.0), (0.2, 1.0, 0.4, 0.9, 0.2)])
@pytest.mark.parametrize("scores", [(1, -1, 1, -1, 0), (1, 1, -1, 0, -1), (0, 0, 1, -1, 0)])
def test_the_wealth_of_a_true_hypothesis_has_mean_one_at_most(
    weights: tuple[float, ...], scores: tuple[int, ...]
) -> None:
    """Over all orders of five images, weighted by their probability: exact."""
    difference, weight = torch.tensor(scores, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)
    reference, arm = (difference > 0).double(), (difference < 0).double()
    assert reference.sum() == arm.sum()
    total, wealth, richest, ruined = 0.0, torch.zeros(5, dtype=torch.float64), 0.0, 0.0
    for permutation in itertools.permutations(range(5)):
        order = torch.tensor(permutation)
        drawn = weight[order]
        left = drawn.flip(0).cumsum(0).flip(0)
        probability = float((drawn / left).prod())
        sums, squares, lead, highest = torch.zeros(1).double(), torch.zeros(1).double(), torch.zeros(1).double(), 0.0
        for image in range(5):  # one image a stage
            here = order[image : image + 1]
            gained, squared = increments(reference[here], arm[here][None], lead, drawn, image)
            sums, squares, lead = sums + gained, squares + squared, lead + difference[here]
            now = log_wealth(sums, squares).exp()
            wealth[image] += probability * now[0]
            highest = max(highest, float(now))
        total += probability
        richest += probability * highest
        ruined += probability * (highest >= 1 / 0.9)
    assert total == pytest.approx(1.0)
    assert wealth.max() <= 1 + 1e-9
    assert ruined <= 0.9
    assert richest > 1.0  # it does bet


def test_stages_of_any_length_give_the_same_evidence() -> None:
    reference, block = torch.rand(40, generator=seeded(0)).double(), torch.rand(3, 40, generator=seeded(1)).double()
    weights = torch.rand(40, generator=seeded(2)).double() + 0.1
    lead = torch.zeros(3).double()
    whole = increments(reference, block, lead, weights, 0)
    first = increments(reference[:13], block[:, :13], lead, weights, 0)
    lead = (reference[:13] - block[:, :13]).sum(1)
    second = increments(reference[13:], block[:, 13:], lead, weights, 13)
    for together, one, other in zip(whole, first, second, strict=True):
        assert torch.allclose(together, one + other)


def near_ties(arms: int, images: int, seed: int) -> Tensor:
    """All arms have the same count, but one that has two more; their answers are otherwise unrelated or much alike."""
    generator = seeded(seed)
    base = torch.rand(images, generator=generator)
    noise = torch.rand(arms, images, generator=generator)
    level = base + (0.05 if seed % 2 else 5.0) * noise
    ranks = level.argsort(1).argsort(1)
    correct = ranks < int(0.7 * images)
    correct[seed % arms] = ranks[seed % arms] < int(0.7 * images) + 2
    return correct


def opposites(arms: int, images: int, seed: int) -> Tensor:
    """Half of the arms are right where the others are wrong; one of them on two more images."""
    first = torch.randperm(images, generator=seeded(seed)) < images // 2
    correct = torch.stack([first, ~first]).repeat(arms // 2, 1)
    best = seed % arms
    correct[best, (~correct[best]).nonzero().flatten()[:2]] = True
    return correct


@pytest.mark.parametrize("make", [near_ties, opposites])
@pytest.mark.parametrize(("pilot", "epsilon"), [(0, 0.0), (8, 0.0), (0, 0.004)])
def test_elimination_errs_no_more_often_than_it_says(
    make: Callable[[int, int, int], Tensor], pilot: int, epsilon: float
) -> None:
    arms, images, delta, repetitions, errors = 16, 200, 0.2, 60, 0
    for seed in range(repetitions):
        correct = make(arms, images, seed)
        race = elimination(
            arms, images, delta=delta, batch=20, pilot=pilot, epsilon=epsilon, generator=seeded(1000 + seed)
        )
        counts = correct.sum(1)
        errors += int(counts[run(race, correct).winner] < counts.max() - epsilon * images)
    # P(Binomial(60, 0.2) > 22) < 0.001
    assert errors <= 22


def test_elimination_saves_where_arms_differ() -> None:
    correct = answers(200, 2000, 11, spread=0.1)
    result = run(elimination(200, 2000, delta=0.01, generator=seeded(12)), correct)
    assert correct.sum(1)[result.winner] == correct.sum(1).max()
    assert result.share < 0.4
    assert result.error == 0.01


def test_epsilon_stops_a_race_of_twins() -> None:
    correct = answers(2, 3000, 13, spread=0.0)
    shares = [
        run(elimination(2, 3000, delta=0.1, epsilon=epsilon, generator=seeded(14)), correct).share
        for epsilon in (0.0, 0.05)
    ]
    assert shares[0] == 1.0
    assert shares[1] < 0.9


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 10_000))
def test_any_small_race_ends(arms: int, images: int, seed: int) -> None:
    correct = torch.rand(arms, images, generator=seeded(seed)) < 0.5
    for race in (
        elimination(arms, images, delta=0.3, epsilon=0.1 * (seed % 2), batch=2, generator=seeded(seed)),
        halving(arms, images, budget=1.0, generator=seeded(seed), pilot=0),
    ):
        assert 0 <= run(race, correct).winner < arms


def test_bad_input_is_explained() -> None:
    with pytest.raises(InputError, match=r"must pay 250 images.*spend 5\.01 % or more"):
        halving(10_000, 5000, budget=0.05, batch=250, pilot=0, generator=seeded(0))
    for make in (
        lambda g: halving(10, 10, budget=0.0, generator=g),
        lambda g: halving(10, 10, budget=0.9, batch=11, generator=g),
        lambda g: halving(10, 10, budget=0.9, pilot=11, generator=g),
        lambda g: halving(10, 10, budget=0.9, pilot=1, generator=g),
        lambda g: elimination(10, 10, delta=0.0, generator=g),
        lambda g: elimination(10, 10, delta=0.1, epsilon=-0.1, generator=g),
        lambda g: elimination(10, 10, delta=0.1, batch=0, generator=g),
        lambda g: exhaustive(0, 10, generator=g),
        lambda g: exhaustive(10, 0, generator=g),
    ):
        with pytest.raises(InputError):
            make(seeded(0))


def test_scores_that_do_not_answer_are_refused() -> None:
    race = exhaustive(3, 4, generator=seeded(0))
    for scores in (torch.zeros(4, 4), torch.zeros(3, 3), torch.zeros(0, 4), torch.full((3, 4), math.nan)):
        with pytest.raises(InputError):
            race.observe(scores)
    with pytest.raises(InputError, match="is not over"):
        race.result()
    with pytest.raises(InputError, match="same settings"):
        race.resume(exhaustive(4, 4, generator=seeded(0)).state())
    over = race.observe(torch.ones(3, 4))
    assert over.request() is None
    with pytest.raises(InputError, match="is over"):
        over.observe(torch.ones(3, 4))


def related(arms: int, images: int, seed: int, *, worth: float = 0.04) -> tuple[Tensor, Tensor]:
    """Right answers of arms that keep some of ten units, each worth something, and which they keep."""
    generator = seeded(seed)
    kept = torch.rand(arms, 10, generator=generator) < 0.5
    quality = kept.float() @ (worth * torch.randn(10, generator=generator))
    difficulty = torch.rand(images, generator=generator)
    alone = torch.rand(arms, images, generator=generator)
    return 0.7 * difficulty + 0.3 * alone < 0.65 + quality[:, None], kept


def test_a_race_in_groups_cut_into_parts_saved_and_resumed_ends_the_same() -> None:
    correct, kept = related(200, 150, 1)

    def make(seed: int) -> Race:
        return halving(200, 150, budget=0.4, pilot=8, features=kept, generator=seeded(seed))

    whole = run(make(2), correct)
    race, requested = make(2), set()
    while (request := race.request(limit=7)) is not None:
        requested.add((race.phase, tuple(request.images.tolist())))
        race = race.observe(correct[request.arms][:, request.images].float())
        race = make(99).resume(load(save(race.state())))
    cut = race.result()
    assert (cut.winner, cut.passes, cut.statement) == (whole.winner, whole.passes, whole.statement)
    assert torch.equal(cut.order, whole.order)
    assert cut.passes == plan_halving(200, 150, 0.4, pilot=8).passes
    assert len(requested) > 12  # six groups of arms see other images
    assert cut.means[cut.winner].item() == pytest.approx(correct[cut.winner].double().mean().item())


def test_arms_are_judged_by_those_they_have_something_in_common_with() -> None:
    behind: dict[bool, float] = {True: 0.0, False: 0.0}
    for seed in range(8):
        correct, kept = related(1500, 600, seed)
        means = correct.double().mean(1)
        for knows in behind:
            features = kept if knows else None
            race = halving(1500, 600, budget=0.06, pilot=16, features=features, generator=seeded(seed))
            behind[knows] += float(means.max() - means[run(race, correct).winner]) / 8
    assert behind[True] < 0.5 * behind[False]


def test_features_that_tell_nothing_cost_little() -> None:
    correct = answers(1500, 600, 3, spread=0.02)
    means = correct.double().mean(1)
    nothing = torch.randn(1500, 30, generator=seeded(1))
    race = halving(1500, 600, budget=0.1, pilot=16, features=nothing, generator=seeded(0))
    assert float(means.max() - means[run(race, correct).winner]) < 0.005


@pytest.mark.parametrize("count", [1, 7, 25, 39])
def test_the_chance_to_be_among_the_first_is_as_drawn(count: int) -> None:
    weights = 0.1 + torch.rand(40, generator=seeded(3)).double()
    generator, seen = seeded(4), torch.zeros(40).double()
    for _ in range(4000):
        seen[image_order(exponential_clocks(40, generator), weights)[:count]] += 1 / 4000
    chance = inclusion(weights, count)
    assert float(chance.sum()) == pytest.approx(count, rel=1e-6)
    assert torch.allclose(chance, seen, atol=0.04)


def test_features_must_have_a_row_for_each_arm() -> None:
    with pytest.raises(InputError, match=r"racing features.*\(100, F\)"):
        halving(100, 50, budget=0.9, pilot=4, features=torch.zeros(99, 3), generator=seeded(0))


def test_the_state_of_a_race_with_another_budget_is_refused_after_its_pilot() -> None:
    correct, _ = related(200, 150, 1)
    race = halving(200, 150, budget=0.2, pilot=8, generator=seeded(2))
    other = halving(200, 150, budget=0.6, pilot=8, generator=seeded(2))
    request = race.request()
    assert request is not None
    race = race.observe(correct[request.arms][:, request.images].float())
    assert race.resume(race.state()).request() is not None
    with pytest.raises(InputError, match="same settings"):
        other.resume(race.state())


def test_pilots_that_answer_alike_do_no_harm() -> None:
    correct = answers(200, 300, 5, spread=0.1)
    correct[:8] = correct[0]
    correct[150] = True
    features = torch.rand(200, 4, generator=seeded(1))
    for race in (
        halving(200, 300, budget=0.4, pilot=8, features=features, generator=seeded(2)),
        halving(200, 300, budget=0.4, pilot=8, features=torch.ones(200, 4), generator=seeded(2)),
    ):
        assert bool(correct[run(race, correct).winner].all())  # as 150 is, and one more
