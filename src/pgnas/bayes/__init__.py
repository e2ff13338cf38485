"""The mathematics of PGNAS on tensors: gates, priors, expected cost, ELBO, the cap's multiplier. Needs torch alone."""

from pgnas.bayes.concrete import drop_to_keep, entropy, logistic_noise, logit, product_logits, rsample, sample
from pgnas.bayes.cost import BilinearCost
from pgnas.bayes.elbo import ElboTerms, elbo
from pgnas.bayes.multiplier import CapController, ramp
from pgnas.bayes.prior import (
    PRIORS,
    BernoulliPrior,
    GibbsPrior,
    KLContext,
    PaperPrior,
    Prior,
    bernoulli_kl,
    gibbs_kl,
    paper_kl,
)

__all__ = [
    "PRIORS",
    "BernoulliPrior",
    "BilinearCost",
    "CapController",
    "ElboTerms",
    "GibbsPrior",
    "KLContext",
    "PaperPrior",
    "Prior",
    "bernoulli_kl",
    "drop_to_keep",
    "elbo",
    "entropy",
    "gibbs_kl",
    "logistic_noise",
    "logit",
    "paper_kl",
    "product_logits",
    "ramp",
    "rsample",
    "sample",
]
