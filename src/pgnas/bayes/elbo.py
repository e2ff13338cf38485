"""The negative evidence lower bound, per training example (Eq. 10 and 14 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pgnas.errors import InputError


@dataclass(frozen=True, eq=False)
class ElboTerms:
    """The two terms of the training loss.

    Attributes:
        nll: Mean negative log likelihood of a batch under sampled gates, scalar, nats per example.
        kl: KL(q || prior) / N, scalar, nats per example.
    """

    nll: Tensor
    kl: Tensor

    @property
    def loss(self) -> Tensor:
        """The negative ELBO divided by N (up to the constant that the prior's KL leaves out), scalar."""
        return self.nll + self.kl


def elbo(nll_mean: Tensor, kl: Tensor, data_size: float) -> ElboTerms:
    """Terms of -(1/M) sum_i log p(y_i | x_i, m * z_i) + (1/N) KL(q || prior), Eq. 14.

    Args:
        nll_mean: Mean negative log likelihood over the M examples of a batch, scalar, nats.
        kl: KL of the whole posterior, scalar, nats, not divided by N.
        data_size: N > 0, the number of training examples (5e5 on CIFAR in the paper, counting augmentation).

    Raises:
        InputError: If ``data_size`` is not positive.
    """
    if not data_size > 0.0:
        raise InputError("data size N", "must be > 0", value=data_size, remedy="pass the number of training examples")
    return ElboTerms(nll=nll_mean, kl=kl / data_size)
