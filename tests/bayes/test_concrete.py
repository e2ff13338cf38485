"""The relaxed gates are what Eq. 16 says, at the ends of the float range too."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgnas.bayes import drop_to_keep, entropy, logistic_noise, logit, product_logits, rsample, sample
from pgnas.errors import InputError

EXTREME = torch.tensor([-30.0, -17.0, -1.0, 0.0, 1.0, 17.0, 30.0])
finite_logits = st.floats(-30, 30)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 2 / 3, 2.0])
def test_a_relaxed_gate_exceeds_one_half_with_the_keep_probability(temperature: float) -> None:
    # An even grid of uniforms instead of draws: the share of the grid is the probability to 1/n.
    n = 100_000
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    logits = double(-3.0, -0.5, 0.0, 1.0, 4.0).detach()
    z = rsample(logits, grid[:, None].expand(n, 5), temperature)
    assert torch.allclose((z > 0.5).double().mean(0), torch.sigmoid(logits), atol=2 / n)


def test_the_relaxed_gate_becomes_bernoulli_as_the_temperature_goes_to_zero() -> None:
    n = 100_000
    grid = ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    pi = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    gaps = []
    for temperature in (1.0, 0.3, 0.1, 0.03, 0.003):
        z = rsample(torch.logit(pi), grid.expand(n, 3), temperature)
        gaps.append(max((z.var(0) - pi * (1 - pi)).abs().max().item(), (z.mean(0) - pi).abs().max().item()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 2e-3 < gaps[0] / 10


def test_the_relaxed_gate_is_the_difference_of_two_gumbels() -> None:
    # log u - log(1-u) has the law of G1 - G2: compare its quantile function with the logistic's.
    u = torch.tensor([0.01, 0.3, 0.5, 0.99], dtype=torch.float64)
    assert torch.allclose(torch.sigmoid(logistic_noise(u)), u)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_draw_gives_nan_or_infinity(dtype: torch.dtype) -> None:
    ends = torch.tensor([0.0, torch.finfo(dtype).eps, 0.5, 1.0 - torch.finfo(dtype).eps / 2, 1.0], dtype=dtype)
    assert logistic_noise(ends).isfinite().all()
    assert (logistic_noise(ends).diff() >= 0).all()
    for temperature in (0.01, 0.2):
        logits = EXTREME.to(dtype, copy=True).requires_grad_()
        z = rsample(logits, ends[:, None].expand(5, 7), temperature)
        z.sum().backward()
        assert z.isfinite().all()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_hard_samples_have_the_keep_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([-3.0, -0.5, 0.0, 2.0])
    n = 40_000
    z = sample(logits, generator=generator, shape=(n,))
    pi = torch.sigmoid(logits)
    assert z.shape == (n, 4)
    assert z.dtype == torch.bool
    assert ((z.float().mean(0) - pi).abs() < 4 * (pi * (1 - pi) / n).sqrt()).all()
    correlation = torch.corrcoef(z.double().T) - torch.eye(4)
    assert correlation.abs().max() < 4 / math.sqrt(n)


def test_hard_samples_honour_extreme_keep_probabilities() -> None:
    # 1 - pi = 1e-6: float32 has 17 steps there, float32 sigmoid(20) is 1 exactly.
    z = sample(torch.full((2_000_000,), logit(1 - 1e-6)), generator=torch.Generator().manual_seed(1))
    assert 0 < (~z).sum() < 12
    assert sample(torch.tensor([30.0])).shape == (1,)
    assert sample(torch.tensor([1e4, -1e4]), shape=(1000,)).float().mean(0).tolist() == [1.0, 0.0]


def test_a_seed_gives_the_same_sample() -> None:
    draws = [sample(torch.zeros(50), generator=torch.Generator().manual_seed(7), shape=(3,)) for _ in range(2)]
    assert torch.equal(draws[0], draws[1])


@given(finite_logits, finite_logits)
def test_product_logits_is_the_logit_of_the_product(a: float, b: float) -> None:
    # In double, log P and log(1 - P) from factors that each keep their digits.
    x, y = double(a).detach(), double(b).detach()
    both = product_logits(x, y)
    log_p = torch.nn.functional.logsigmoid(x) + torch.nn.functional.logsigmoid(y)
    p, q = torch.sigmoid(x), torch.sigmoid(y)
    log_not = torch.log(torch.sigmoid(-x) + p * torch.sigmoid(-y))
    assert torch.allclose(both, log_p - log_not, atol=1e-12)
    assert torch.allclose(torch.sigmoid(both), p * q, atol=1e-15)


@given(finite_logits)
def test_entropy_is_minus_p_log_p(a: float) -> None:
    p, q = 1 / (1 + math.exp(-a)), 1 / (1 + math.exp(a))
    expected = -p * math.log(p) - q * math.log(q)
    assert entropy(double(a).detach()).item() == pytest.approx(expected, rel=1e-9)
    assert entropy(torch.tensor(a)).item() == pytest.approx(expected, rel=1e-5)


def test_entropy_slope_in_single_precision_keeps_its_digits_at_the_ends() -> None:
    logits = EXTREME.clone().requires_grad_()
    entropy(logits).sum().backward()
    a = EXTREME.double()
    assert logits.grad is not None
    assert torch.allclose(logits.grad.double(), -a * torch.sigmoid(a) * torch.sigmoid(-a), rtol=1e-4, atol=0)


def test_gradients_equal_finite_differences() -> None:
    uniform = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = double(-3.0, -0.2, 0.0, 2.5), double(1.0, -4.0, 0.3, 0.0)
    assert torch.autograd.gradcheck(lambda x: rsample(x, uniform, 0.4), a)
    assert torch.autograd.gradcheck(entropy, a)
    assert torch.autograd.gradgradcheck(entropy, a)
    assert torch.autograd.gradcheck(product_logits, (a, b))


def test_product_logits_and_entropy_are_finite_at_the_ends_in_single_precision() -> None:
    a = EXTREME.clone().requires_grad_()
    b = EXTREME.flip(0).clone().requires_grad_()
    value = product_logits(a[:, None], b) + entropy(a)
    value.sum().backward()
    for tensor in (value, a.grad, b.grad):
        assert tensor is not None
        assert tensor.isfinite().all()


@given(st.floats(1e-9, 1 - 1e-9))
def test_logit_and_drop_invert(p: float) -> None:
    assert 1 / (1 + math.exp(-logit(p))) == pytest.approx(p, rel=1e-9)
    assert logit(drop_to_keep(p)) == pytest.approx(-logit(p), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_certain_gates_and_nonsense_are_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"must be in \(0, 1\)"):
        logit(value)
    with pytest.raises(InputError, match=r"must be in \(0, 1\)"):
        drop_to_keep(value)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(InputError, match="temperature must be > 0"):
        rsample(torch.zeros(2), torch.rand(2), temperature)
