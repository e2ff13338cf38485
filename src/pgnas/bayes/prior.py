"""Priors over gates: each gives KL(q || prior) in nats, summed over channels and not divided by N.

q is a product of Bernoulli(sigmoid(logits)) and, where a network has choices, of categorical variables. `PRIORS` lists
the priors by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pgnas.bayes.categorical import Choices
from pgnas.bayes.concrete import drop_to_keep, entropy, logit, toward_certain
from pgnas.errors import InputError


def bernoulli_kl(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """KL(Bernoulli(sigmoid(logits)) || Bernoulli(sigmoid(prior_logits))) in nats, elementwise.

    It is >= 0 (to rounding), and 0 only where the two agree.

    Args:
        logits: Keep logits of the posterior, any shape.
        prior_logits: Keep logits of the prior, broadcast against ``logits``.
    """
    # With both logits flipped so that the posterior's is x >= 0: pi = 1 - sigmoid(-x) and log pi - log(1 - pi) = x.
    sign = toward_certain(logits)
    x, y = sign * logits, sign * prior_logits
    return logsigmoid(x) - logsigmoid(y) + torch.sigmoid(-x) * (y - x)


def paper_kl(logits: Tensor, weight_sq: Tensor, *, length_scale_sq: float) -> Tensor:
    """The paper's KL with prior drop rate u = 0 (Eq. 15, A9; Gal 2016, Prop. 4), up to a constant, in nats.

    sum_k pi_k * c * ||w_k||^2 - H(pi_k), with c = l^2 as in the published code (l^2 / 2 as printed: halve the
    argument for that).

    The channels of a group share their logit, so the sum over channels *is* the paper's formula over groups,
    pi_g * c * ||m_g||^2 - K_g * H(pi_g), with ||m_g||^2 = sum of ||w_k||^2 in the group and K_g its channels.

    The dropped constant (which depends on neither pi nor w, and is infinite in the limit the paper takes) means that
    this value is not bounded below by 0: with small weights it goes down to -K log 2.

    Args:
        logits: Keep logits, shape (K,).
        weight_sq: Squared norm of the slice(s) read through each channel, shape (K,).
        length_scale_sq: c, in nats per squared weight.

    Returns:
        Scalar.
    """
    return (torch.sigmoid(logits) * length_scale_sq * weight_sq - entropy(logits)).sum()


def paper_choice_kl(choices: Choices, weight_sq: Tensor, *, length_scale_sq: float) -> Tensor:
    """The categorical counterpart of `paper_kl`: sum_k q_k * c * ||w_k||^2 - H(q) over all choices, in nats.

    The paper's prior drop rate u = 0, with exactly one option of a choice open: its constant is dropped likewise. An
    option without weights has nothing to pay.

    Args:
        choices: The posterior, over M options.
        weight_sq: Squared norm of the weights that only the open option uses, shape (M,).
        length_scale_sq: c, in nats per squared weight.

    Returns:
        Scalar.
    """
    return (choices.log_probs().exp() * length_scale_sq * weight_sq).sum() - choices.entropy().sum()


def gibbs_kl(logits: Tensor, expected_cost: Tensor, *, multiplier: float | Tensor, data_size: float) -> Tensor:
    """KL to the Gibbs prior p(z) = exp(-lambda * N * cost(z)) / Z, without its constant log Z, in nats.

    -sum_k H(pi_k) + lambda * N * E_q[cost]. Add log Z = log sum_z exp(-lambda * N * cost(z)), which does not depend
    on q, for the true KL; without it the value may be negative.

    Args:
        logits: Keep logits, shape (K,).
        expected_cost: E_q[cost], scalar, in units of the full network's cost.
        multiplier: lambda >= 0, nats per training example and unit of cost.
        data_size: N, the number of training examples the likelihood is taken to have.

    Returns:
        Scalar.
    """
    return multiplier * data_size * expected_cost - entropy(logits).sum()


@dataclass(frozen=True, eq=False)
class KLContext:
    """What a prior may look at. `Prior.needs_weights` and `Prior.needs_cost` say which fields must be filled.

    Attributes:
        logits: Keep logits, shape (K,); the channels of a group repeat their shared logit.
        data_size: N, the number of training examples the likelihood is taken to have.
        weight_sq: Squared norm of the slice(s) read through each channel, shape (K,).
        expected_cost: E_q[cost], scalar, in units of the full network's cost.
        multiplier: lambda of the Gibbs prior, nats per training example and unit of cost.
        choices: The categorical part of q, over M options; None if there is none.
        option_weight_sq: Squared norm of the weights that only an open option uses, shape (M,).
    """

    logits: Tensor
    data_size: float
    weight_sq: Tensor | None = None
    expected_cost: Tensor | None = None
    multiplier: float | Tensor = 0.0
    choices: Choices | None = None
    option_weight_sq: Tensor | None = None


class Prior(ABC):
    """A distribution over gates (and, for the paper's, over weights) that the posterior is held to."""

    name: ClassVar[str]
    summary: ClassVar[str]
    needs_weights: ClassVar[bool] = False
    needs_cost: ClassVar[bool] = False

    @abstractmethod
    def kl(self, context: KLContext) -> Tensor:
        """KL(q || prior) in nats, a scalar summed over channels, not divided by N.

        Raises:
            InputError: If the context lacks what the prior needs.
        """


@dataclass(frozen=True)
class PaperPrior(Prior):
    """The paper's prior (see `paper_kl`): length-scale term on the kept weights; it replaces weight decay.

    Attributes:
        length_scale_sq: c > 0 in nats per squared weight (the published l^2).
    """

    length_scale_sq: float

    name: ClassVar[str] = "paper"
    summary: ClassVar[str] = "prior drop rate 0: l^2 * pi * |w|^2 - H(pi), replaces weight decay (the paper)"
    needs_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.length_scale_sq > 0.0:
            raise InputError(
                "length scale l^2", "must be > 0", value=self.length_scale_sq, remedy="the paper uses 0.1-500"
            )

    def kl(self, context: KLContext) -> Tensor:
        """`paper_kl`; up to a constant, so it may be negative."""
        weight_sq = _given(context.weight_sq, self.name, "weight_sq")
        kl = paper_kl(context.logits, weight_sq, length_scale_sq=self.length_scale_sq)
        if context.choices is None:
            return kl
        option_sq = _given(context.option_weight_sq, self.name, "option_weight_sq")
        return kl + paper_choice_kl(context.choices, option_sq, length_scale_sq=self.length_scale_sq)


@dataclass(frozen=True)
class BernoulliPrior(Prior):
    """Every channel kept with probability 1 - drop, independently; the KL is >= 0.

    Attributes:
        drop: u in (0, 1), the prior's drop rate.
    """

    drop: float

    name: ClassVar[str] = "bernoulli"
    summary: ClassVar[str] = "each channel dropped with a fixed prior rate u in (0, 1)"

    def __post_init__(self) -> None:
        drop_to_keep(self.drop)

    def kl(self, context: KLContext) -> Tensor:
        """Sum of `bernoulli_kl` over channels; the options of a choice are equally likely, see `Choices`."""
        prior_logit = context.logits.new_tensor(logit(drop_to_keep(self.drop)))
        kl = bernoulli_kl(context.logits, prior_logit).sum()
        choices = context.choices
        return kl if choices is None else kl + choices.kl(choices.uniform_log_probs()).sum()


@dataclass(frozen=True)
class GibbsPrior(Prior):
    """p(architecture) proportional to exp(-lambda * N * cost); see `gibbs_kl`."""

    name: ClassVar[str] = "gibbs"
    summary: ClassVar[str] = "small networks are likelier: exp(-lambda * N * cost), lambda set by a cap"
    needs_cost: ClassVar[bool] = True

    def kl(self, context: KLContext) -> Tensor:
        """`gibbs_kl`; without log Z, so it may be negative."""
        cost = _given(context.expected_cost, self.name, "expected_cost")
        kl = gibbs_kl(context.logits, cost, multiplier=context.multiplier, data_size=context.data_size)
        return kl if context.choices is None else kl - context.choices.entropy().sum()


PRIORS: dict[str, type[Prior]] = {prior.name: prior for prior in (PaperPrior, BernoulliPrior, GibbsPrior)}
"""Every prior by name; ``PRIORS[name].summary`` is its one-line description."""


def _given(value: Tensor | None, prior: str, field: str) -> Tensor:
    if value is None:
        raise InputError(f"KLContext.{field}", f"must be given for the {prior} prior", remedy=f"pass {field}=...")
    return value
