"""Each prior's KL against the sum over all 2^K gates."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pgnas.bayes import (
    PRIORS,
    BernoulliPrior,
    GibbsPrior,
    KLContext,
    PaperPrior,
    bernoulli_kl,
    entropy,
    gibbs_kl,
    logit,
    paper_kl,
)
from pgnas.errors import InputError

K = 5
GATES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=K)), dtype=torch.float64)
POSTERIORS = torch.randn(6, K, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3


def log_q(logits: Tensor) -> Tensor:
    """log q(z) of all 2^K gates."""
    p = torch.sigmoid(logits)
    return (GATES * p.log() + (1 - GATES) * (1 - p).log()).sum(1)


def enumerated_kl(logits: Tensor, log_prior: Tensor) -> Tensor:
    assert torch.allclose(log_prior.exp().sum(), torch.ones((), dtype=torch.float64))
    log = log_q(logits)
    return (log.exp() * (log - log_prior)).sum()


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_bernoulli_kl_is_nonnegative_and_zero_only_where_equal(a: float, b: float) -> None:
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    kl = bernoulli_kl(x, y).item()
    assert kl >= -1e-14
    assert abs(bernoulli_kl(x, x).item()) < 1e-15
    # Pinsker: KL >= 2 (p - q)^2, so different probabilities have a KL above 0.
    assert kl >= 2 * (torch.sigmoid(x) - torch.sigmoid(y)).item() ** 2 - 1e-14


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_bernoulli_kl_is_the_textbook_sum(a: float, b: float) -> None:
    p, p_not, q, q_not = (1 / (1 + math.exp(-x)) for x in (a, -a, b, -b))
    expected = p * math.log(p / q) + p_not * math.log(p_not / q_not)
    x, y = torch.tensor([a, b], dtype=torch.float64)
    assert bernoulli_kl(x, y).item() == pytest.approx(expected, abs=1e-12)


def test_bernoulli_prior_is_the_kl_over_all_gates() -> None:
    drop = 0.3
    log_prior = (GATES * math.log(1 - drop) + (1 - GATES) * math.log(drop)).sum(1)
    for logits in POSTERIORS:
        kl = BernoulliPrior(drop).kl(KLContext(logits, data_size=10.0))
        assert torch.allclose(kl, enumerated_kl(logits, log_prior))


def test_gibbs_prior_is_the_kl_over_all_gates_up_to_log_z() -> None:
    multiplier, data_size = 0.03, 50.0
    cost = (GATES.sum(1) / K) ** 2 + GATES[:, 0] * GATES[:, 1]  # any function of the gates
    log_z = torch.logsumexp(-multiplier * data_size * cost, 0)
    assert log_z.abs() > 0.1
    for logits in POSTERIORS:
        expected_cost = (log_q(logits).exp() * cost).sum()
        context = KLContext(logits, data_size, expected_cost=expected_cost, multiplier=multiplier)
        true = enumerated_kl(logits, -multiplier * data_size * cost - log_z)
        assert torch.allclose(GibbsPrior().kl(context) + log_z, true)


def test_paper_prior_is_a_kl_over_all_gates_up_to_a_constant_of_the_weights() -> None:
    weight_sq = torch.tensor([0.0, 0.1, 0.5, 2.0, 0.01], dtype=torch.float64)
    energy = 1.5 * GATES @ weight_sq
    log_z = torch.logsumexp(-energy, 0)
    for logits in POSTERIORS:
        kl = PaperPrior(1.5).kl(KLContext(logits, data_size=1.0, weight_sq=weight_sq))
        assert torch.allclose(kl + log_z, enumerated_kl(logits, -energy - log_z))


def test_paper_prior_is_gals_proposition_4() -> None:
    """KL(pi N(m, s^2) + (1-pi) N(0, s^2) || N(0, 1/l^2)) by quadrature, s << m: constant in pi and m for c = l^2/2."""
    sigma, length_sq = 0.02, 3.0

    def normal(w: Tensor, mean: float, sd: float) -> Tensor:
        return torch.exp(-0.5 * ((w - mean) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))

    constant = -0.5 * math.log(sigma**2 * length_sq) - 0.5 + 0.5 * length_sq * sigma**2
    for keep, m in ((0.2, 0.5), (0.9, 0.5), (0.6, 1.2)):
        w = torch.linspace(-0.3, m + 0.3, 200_001, dtype=torch.float64)
        q = keep * normal(w, m, sigma) + (1 - keep) * normal(w, 0.0, sigma)
        log_prior = 0.5 * math.log(length_sq / (2 * math.pi)) - 0.5 * length_sq * w**2
        kl = torch.trapezoid(q * (q.clamp(min=1e-300).log() - log_prior), w)
        logits, weight_sq = torch.tensor([logit(keep)]).double(), torch.tensor([m * m]).double()
        ours = paper_kl(logits, weight_sq, length_scale_sq=length_sq / 2)
        assert (kl - ours).item() == pytest.approx(constant, abs=1e-6)


def test_channels_that_share_a_logit_sum_to_the_papers_group_formula() -> None:
    group = torch.tensor([0.7, -1.2], dtype=torch.float64)
    member = torch.tensor([0, 0, 0, 1, 1])
    slices = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ours = paper_kl(group[member], slices.square().sum(1), length_scale_sq=50.0)
    norms = torch.stack([slices[:3].square().sum(), slices[3:].square().sum()])
    sizes = torch.tensor([3.0, 2.0])
    assert torch.allclose(ours, (torch.sigmoid(group) * 50.0 * norms - sizes * entropy(group)).sum())


def test_the_papers_kl_is_not_bounded_below_by_zero() -> None:
    kl = paper_kl(torch.zeros(K), torch.zeros(K), length_scale_sq=50.0)
    assert kl.item() == pytest.approx(-K * math.log(2))


def test_gradients_equal_finite_differences() -> None:
    a = POSTERIORS[0].clone().requires_grad_()
    b = POSTERIORS[1].clone().requires_grad_()
    w = torch.rand(K, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    cost = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bernoulli_kl, (a, b))
    assert torch.autograd.gradcheck(lambda x, y: paper_kl(x, y, length_scale_sq=2.0), (a, w))
    assert torch.autograd.gradcheck(lambda x, c: gibbs_kl(x, c, multiplier=0.1, data_size=30.0), (a, cost))


def test_everything_is_finite_at_the_ends_in_single_precision() -> None:
    for start in (-30.0, 30.0):
        for prior in (PaperPrior(500.0), BernoulliPrior(1e-6), GibbsPrior()):
            logits = torch.full((3,), start, requires_grad=True)
            weight_sq = torch.ones(3, requires_grad=True)
            context = KLContext(logits, 5e5, weight_sq, torch.sigmoid(logits).mean(), multiplier=1.0)
            kl = prior.kl(context)
            kl.backward()
            assert kl.isfinite()
            assert logits.grad is not None
            assert logits.grad.isfinite().all()


def test_bernoulli_slope_in_single_precision_keeps_its_digits_at_the_ends() -> None:
    ends = torch.tensor([-30.0, 30.0])
    a, b = ends.clone().requires_grad_(), torch.tensor([2.0, -30.0])
    bernoulli_kl(a, b).sum().backward()
    x, y = ends.double(), b.double()
    assert a.grad is not None
    assert torch.allclose(a.grad.double(), torch.sigmoid(x) * torch.sigmoid(-x) * (x - y), rtol=1e-4, atol=0)


def test_the_registry_names_and_describes_every_prior() -> None:
    assert set(PRIORS) == {"paper", "bernoulli", "gibbs"}
    for name, prior in PRIORS.items():
        assert prior.name == name
        assert prior.summary
        assert "\n" not in prior.summary


def test_a_prior_asks_for_what_it_needs() -> None:
    bare = KLContext(torch.zeros(2), data_size=1.0)
    for prior in (PaperPrior(1.0), BernoulliPrior(0.5), GibbsPrior()):
        if prior.needs_weights or prior.needs_cost:
            with pytest.raises(InputError, match=f"must be given for the {prior.name} prior"):
                prior.kl(bare)
        else:
            assert prior.kl(bare).isfinite()


def test_priors_refuse_nonsense() -> None:
    with pytest.raises(InputError, match="length scale"):
        PaperPrior(0.0)
    with pytest.raises(InputError, match="drop rate"):
        BernoulliPrior(1.0)
