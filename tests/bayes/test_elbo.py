"""The Monte-Carlo ELBO of a small gated network against the sum over all 2^K gates."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pgnas.bayes import KLContext, PaperPrior, elbo, sample
from pgnas.errors import InputError

K, CLASSES, DATA = 6, 3, 12
GATES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=K)), dtype=torch.float64)


def network(gates: Tensor) -> Tensor:
    """Mean NLL (C,) of a fixed two-layer network under input gates (C, K)."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(DATA, K, dtype=torch.float64, generator=generator)
    y = torch.randint(CLASSES, (DATA,), generator=generator)
    first = torch.randn(K, 8, dtype=torch.float64, generator=generator)
    last = torch.randn(8, CLASSES, dtype=torch.float64, generator=generator)
    hidden = torch.relu(torch.einsum("nk,ck,kh->cnh", x, gates, first))
    scores = hidden @ last
    return cross_entropy(scores.flatten(0, 1), y.repeat(len(gates)), reduction="none").view(len(gates), DATA).mean(1)


@pytest.mark.parametrize(
    "logits",
    [
        torch.tensor([1.0, -0.5, 0.0, 2.0, -2.0, 0.7], dtype=torch.float64),
        torch.tensor([0.8, 0.8, 0.8, -1.0, -1.0, -1.0], dtype=torch.float64),  # two groups share logits
    ],
    ids=["separate", "shared"],
)
def test_the_sampled_elbo_is_the_enumerated_one(logits: Tensor) -> None:
    weight_sq = torch.linspace(0.1, 1.0, K, dtype=torch.float64)
    p = torch.sigmoid(logits)
    q = (GATES * p + (1 - GATES) * (1 - p)).prod(1)
    log_ratio = q.log() + 2.0 * (GATES @ weight_sq)
    exact = (q * network(GATES)).sum() + (q * log_ratio).sum() / 100.0

    kl = PaperPrior(2.0).kl(KLContext(logits, 100.0, weight_sq))
    generator = torch.Generator().manual_seed(11)
    errors = []
    for count in (250, 4_000, 64_000):
        nll = network(sample(logits, generator=generator, shape=(count,)).double())
        standard_error = nll.std() / math.sqrt(count)
        errors.append(standard_error.item())
        assert (elbo(nll.mean(), kl, 100.0).loss - exact).abs() < 4 * standard_error
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.02 * exact.abs()


def test_the_loss_is_the_two_terms_and_only_the_kl_is_divided() -> None:
    terms = elbo(torch.tensor(2.0), torch.tensor(30.0), 10)
    assert (terms.nll.item(), terms.kl.item(), terms.loss.item()) == (2.0, 3.0, 5.0)


@pytest.mark.parametrize("size", [0, -1.0, math.nan])
def test_the_data_size_must_be_positive(size: float) -> None:
    with pytest.raises(InputError, match="data size N must be > 0"):
        elbo(torch.tensor(1.0), torch.tensor(1.0), size)
