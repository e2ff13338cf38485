"""Categorical gates: of the options of a choice exactly one is open. Relaxed and hard samples, entropy, KL.

Several choices are kept in one flat vector of M options. Their logits are those of a softmax within each choice:
unlike keep logits they may all be moved by a constant. :meth:`Choices.keep_logits` gives what each option is by itself,
a Bernoulli variable, for formulas that need no more than that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pgnas.bayes._unions import log1mexp
from pgnas.errors import InputError


@dataclass(frozen=True, eq=False)
class Choices:
    """Independent categorical variables: q(option k of choice g) = softmax of the logits of g.

    Attributes:
        logits: Logit of every option, shape (M,), floating.
        choice: The choice that each option belongs to, 0..G-1, each with an option at least, shape (M,) long.
        count: G, the number of choices.
    """

    logits: Tensor
    choice: Tensor
    count: int

    def log_probs(self) -> Tensor:
        """Log probability of every option, shape (M,), nats."""
        return self.logits - self._log_sums(self.logits)[self.choice]

    def keep_logits(self) -> Tensor:
        """Logit log p - log(1 - p) of every option's probability, shape (M,)."""
        log_probs = self.log_probs()
        return log_probs - log1mexp(log_probs)

    def entropy(self) -> Tensor:
        """Entropy of each choice in nats, shape (G,), between 0 and the log of the number of its options."""
        log_probs = self.log_probs()
        return self._sums(-log_probs.exp() * log_probs)

    def kl(self, prior_log_probs: Tensor) -> Tensor:
        """KL(q || prior) of each choice in nats, shape (G,); >= 0 to rounding.

        Args:
            prior_log_probs: Log probability of every option under the prior, shape (M,), normalised in each choice.
        """
        log_probs = self.log_probs()
        return self._sums(log_probs.exp() * (log_probs - prior_log_probs))

    def uniform_log_probs(self) -> Tensor:
        """Log probabilities of the prior that takes the options of a choice as equally likely, shape (M,).

        Independent gates with any one keep rate, given that exactly one of a choice's is open, are this prior.
        """
        return -self._sums(torch.ones_like(self.logits)).log()[self.choice]

    def rsample(self, uniform: Tensor, temperature: float) -> Tensor:
        """Relaxed sample: the softmax of (logits + Gumbel noise) / tau in each choice.

        For every temperature the largest of a choice's values is that of option k with probability q(k); as tau -> 0
        the sample becomes one-hot. Jang et al. 2017; Maddison et al. 2017.

        Args:
            uniform: Draws from U[0, 1), shape (..., M).
            temperature: tau > 0, without unit.

        Returns:
            Values in [0, 1] that sum to 1 in each choice, shape (..., M), differentiable in the logits.

        Raises:
            InputError: If ``temperature`` is not positive.
        """
        if not temperature > 0.0:
            raise InputError("temperature", "must be > 0", value=temperature, remedy="use sample() for hard gates")
        scores = (self.logits + gumbel_noise(uniform)) / temperature
        return (scores - self._log_sums(scores)[..., self.choice]).exp()

    @torch.no_grad()
    def sample(self, *, generator: torch.Generator | None = None, shape: tuple[int, ...] = ()) -> Tensor:
        """Hard samples, bool of shape ``shape + (M,)``: one option of each choice is True.

        Args:
            generator: Source of randomness, on any device.
            shape: Leading sample shape.
        """
        device = generator.device if generator is not None else torch.device("cpu")
        logits = self.logits.detach().to(device).double()
        uniform = torch.rand((*shape, len(logits)), generator=generator, dtype=torch.float64, device=device)
        return self._largest((logits + gumbel_noise(uniform)).to(self.logits.device))

    @torch.no_grad()
    def mode(self) -> Tensor:
        """The most probable option of each choice, bool (M,); of equal ones the first."""
        return self._largest(self.logits.detach())

    def _largest(self, scores: Tensor) -> Tensor:
        flat = scores.reshape(-1, scores.shape[-1])
        found = torch.zeros_like(flat, dtype=torch.bool)
        rows = torch.arange(len(flat), device=flat.device)
        for choice in range(self.count):
            options = (self.choice == choice).nonzero()[:, 0]
            found[rows, options[flat[:, options].argmax(1)]] = True
        return found.reshape(scores.shape)

    def _log_sums(self, scores: Tensor) -> Tensor:
        """Log of the sum of exponentials over each choice, (..., G)."""
        choice = self.choice.expand(scores.shape)
        lowest = torch.full((*scores.shape[:-1], self.count), -torch.inf, dtype=scores.dtype, device=scores.device)
        top = lowest.scatter_reduce(-1, choice, scores.detach(), "amax")
        sums = torch.zeros_like(top).scatter_add(-1, choice, (scores - top[..., self.choice]).exp())
        return top + sums.log()

    def _sums(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.count).index_add(0, self.choice, values)


def gumbel_noise(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise -log(-log u), of the shape and dtype of ``uniform``.

    Args:
        uniform: Draws from U[0, 1); the ends are moved inwards by half of a generator step, see `logistic_noise`.
    """
    eps = torch.finfo(uniform.dtype).eps
    return -torch.log(-torch.log(uniform.clamp(eps / 4, 1.0 - eps / 2)))
