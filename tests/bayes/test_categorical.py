"""Choices: relaxed samples whose largest value has the right law, entropy and KL, expected cost against enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pgnas.bayes import BilinearCost, Choices, KLContext, PaperPrior, bernoulli_kl
from pgnas.bayes.prior import BernoulliPrior, GibbsPrior
from pgnas.errors import InputError

OPTIONS = (3, 2, 4)


def choices(seed: int = 0, scale: float = 1.5) -> Choices:
    rng = torch.Generator().manual_seed(seed)
    choice = torch.repeat_interleave(torch.tensor(OPTIONS))
    return Choices(scale * torch.randn(sum(OPTIONS), dtype=torch.float64, generator=rng), choice, len(OPTIONS))


def probabilities(q: Choices) -> list[Tensor]:
    """Of each choice, by another way."""
    return [part.softmax(0) for part in q.logits.split(OPTIONS)]


def test_probabilities_entropy_and_kl_are_those_of_each_softmax() -> None:
    q = choices()
    parts = probabilities(q)
    assert torch.allclose(q.log_probs().exp(), torch.cat(parts))
    assert torch.allclose(torch.sigmoid(q.keep_logits()), torch.cat(parts))
    found = [torch.distributions.Categorical(p) for p in parts]
    assert torch.allclose(q.entropy(), torch.stack([d.entropy() for d in found]))
    uniform = [torch.distributions.Categorical(torch.ones(k, dtype=torch.float64) / k) for k in OPTIONS]
    expected = [torch.distributions.kl_divergence(d, u) for d, u in zip(found, uniform, strict=True)]
    assert torch.allclose(q.kl(q.uniform_log_probs()), torch.stack(expected))
    assert torch.allclose(q.kl(q.log_probs()), torch.zeros(3, dtype=torch.float64), atol=1e-12)


def test_certain_and_impossible_options_have_finite_gradients() -> None:
    logits = torch.tensor([200.0, -200.0, 0.0], requires_grad=True)
    q = Choices(logits, torch.tensor([0, 0, 1]), 2)
    (q.entropy().sum() + q.keep_logits().clamp(-50, 50).sum() + q.rsample(torch.zeros(4, 3), 0.1).sum()).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert q.mode().tolist() == [True, False, True]


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_the_largest_relaxed_value_has_the_law_of_the_hard_sample(temperature: float) -> None:
    q, rng = choices(), torch.Generator().manual_seed(1)
    relaxed = q.rsample(torch.rand(20_000, sum(OPTIONS), dtype=torch.float64, generator=rng), temperature)
    hard = q.sample(generator=rng, shape=(20_000,))
    for z, s, p in zip(relaxed.split(OPTIONS, 1), hard.split(OPTIONS, 1), probabilities(q), strict=True):
        assert torch.allclose(z.sum(1), torch.ones(20_000, dtype=torch.float64))
        assert (s.sum(1) == 1).all()
        for mean in (torch.nn.functional.one_hot(z.argmax(1), len(p)).double().mean(0), s.double().mean(0)):
            assert torch.allclose(mean, p, atol=0.015)  # four standard deviations of 20,000 draws


def test_a_cold_sample_is_one_hot_and_its_gradient_reaches_the_logits() -> None:
    q = choices()
    q.logits.requires_grad_()
    uniform = torch.rand(64, sum(OPTIONS), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    cold = q.rsample(uniform, 1e-6)
    assert torch.allclose(cold, cold.round(), atol=1e-6)
    q.rsample(uniform, 1.0).square().sum().backward()
    assert q.logits.grad is not None
    for part in q.logits.grad.split(OPTIONS):
        assert part.abs().max() > 0
        assert abs(float(part.sum())) < 1e-9  # a constant added to all of a choice's logits changes nothing
    with pytest.raises(InputError, match="temperature"):
        q.rsample(uniform, 0.0)


def test_the_uniform_prior_is_independent_gates_given_that_one_is_open() -> None:
    keep = 0.3
    weights = [keep * (1 - keep) ** 3 for _ in range(4)]  # of each one-hot vector of four gates
    q = Choices(torch.zeros(4), torch.zeros(4, dtype=torch.long), 1)
    assert torch.allclose(q.uniform_log_probs().exp(), torch.tensor([w / sum(weights) for w in weights]))


def test_priors_add_the_choices_part() -> None:
    q, logits, weight_sq = choices(), torch.randn(5, dtype=torch.float64), torch.rand(9, dtype=torch.float64)
    context = {"logits": logits, "data_size": 10.0, "weight_sq": logits**2, "expected_cost": torch.tensor(0.3)}
    alone, joint = KLContext(**context), KLContext(**context, choices=q, option_weight_sq=weight_sq)
    parts, entropy = torch.cat(probabilities(q)), q.entropy().sum()
    added = {prior: prior.kl(joint) - prior.kl(alone) for prior in (PaperPrior(7.0), BernoulliPrior(0.2), GibbsPrior())}
    paper, bernoulli, gibbs = added.values()
    assert torch.allclose(paper, 7 * (parts * weight_sq).sum() - entropy)
    assert torch.allclose(bernoulli, torch.tensor(OPTIONS).double().log().sum() - entropy)
    assert torch.allclose(gibbs, -entropy)
    with pytest.raises(InputError, match="option_weight_sq"):
        PaperPrior(7.0).kl(KLContext(**context, choices=q))


def test_two_options_are_one_gate() -> None:
    logit, prior = torch.tensor(0.7), torch.tensor(-0.4)
    q = Choices(torch.stack([logit, torch.zeros(())]), torch.zeros(2, dtype=torch.long), 1)
    log_prior = torch.stack([prior, torch.zeros(())]).log_softmax(0)
    assert torch.allclose(q.kl(log_prior)[0], bernoulli_kl(logit, prior))


def cost(readers: list[list[list[int]]], inputs: list[int], choice: list[int]) -> BilinearCost:
    """One layer: its input units, and the joint slots that read each output."""
    slots = [[unit] for unit in inputs] + [slot for slots in readers for slot in slots]
    first = [len(inputs) + sum(len(s) for s in readers[:k]) for k in range(len(readers))]
    return BilinearCost(
        units=len(choice),
        slot_layer=torch.tensor([0] * len(inputs) + [-1] * (len(slots) - len(inputs))),
        entry_slot=torch.tensor([s for s, slot in enumerate(slots) for _ in slot]),
        entry_unit=torch.tensor([unit for slot in slots for unit in slot]),
        fixed_inputs=torch.tensor([1.0], dtype=torch.float64),
        output_layer=torch.zeros(len(readers), dtype=torch.long),
        output_always=torch.zeros(len(readers), dtype=torch.bool),
        reader_output=torch.tensor([p for p, slots in enumerate(readers) for _ in slots]),
        reader_slot=torch.tensor([first[p] + k for p, slots in enumerate(readers) for k in range(len(slots))]),
        layer_weight=torch.tensor([2.0], dtype=torch.float64),
        output_weight=torch.tensor([0.5], dtype=torch.float64),
        choice=torch.tensor(choice),
    )


@pytest.mark.parametrize(
    "readers",
    [
        [[[2]], [[3]], [[4]]],  # each output by one option
        [[[2], [3]], [[2], [3], [4]], [[2], [5]]],  # by options of one choice: sums; of two: a union
        [[[2, 0], [3, 0]], [[2, 1], [3, 0], [6]]],  # joint with independent units
        [[[2, 3]], [[2, 3], [4, 1]]],  # two options of one choice: never
        [[[2, 5], [2, 6], [2, 0]]],  # an option that all have
    ],
)
def test_expected_cost_with_options_is_the_mean_over_all_architectures(
    readers: list[list[list[int]]],
) -> None:
    found = cost(readers, [0, 1], [-1, -1, 0, 0, 0, 1, 1])
    rng = torch.Generator().manual_seed(3)
    free = torch.randn(2, dtype=torch.float64, generator=rng)
    q = Choices(torch.randn(5, dtype=torch.float64, generator=rng), torch.tensor([0, 0, 0, 1, 1]), 2)
    p, parts = torch.sigmoid(free), q.log_probs().exp()
    mean = 0.0
    for a, b, first, second in itertools.product((0, 1), (0, 1), (0, 1, 2), (3, 4)):
        kept = torch.zeros(7, dtype=torch.bool)
        kept[[2 + first, 2 + second]] = True
        kept[0], kept[1] = bool(a), bool(b)
        weight = (p[0] if a else 1 - p[0]) * (p[1] if b else 1 - p[1]) * parts[first] * parts[second]
        mean += float(weight) * found.count(kept)
    assert found.exact
    assert float(found.expected(torch.cat([free, q.keep_logits()]))) == pytest.approx(mean, rel=1e-9)


def test_what_is_not_exact_is_said_to_be_and_options_of_inputs_are_refused() -> None:
    assert not cost([[[2, 5], [3, 6], [2, 6]]], [0], [-1, -1, 0, 0, 0, 1, 1]).exact
    with pytest.raises(InputError, match="input slot"):
        cost([[[0]]], [2], [-1, -1, 0, 0, 0, 1, 1])
