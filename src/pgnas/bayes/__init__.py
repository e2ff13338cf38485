"""The mathematics of PGNAS on tensors: gates, priors, expected cost, ELBO, multiplier, racing. Needs torch alone."""

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
from pgnas.bayes.racing import (
    HalvingPlan,
    Race,
    RaceResult,
    Request,
    elimination,
    exhaustive,
    halving,
    plan_halving,
)

__all__ = [
    "PRIORS",
    "BernoulliPrior",
    "BilinearCost",
    "CapController",
    "ElboTerms",
    "GibbsPrior",
    "HalvingPlan",
    "KLContext",
    "PaperPrior",
    "Prior",
    "Race",
    "RaceResult",
    "Request",
    "bernoulli_kl",
    "drop_to_keep",
    "elbo",
    "elimination",
    "entropy",
    "exhaustive",
    "gibbs_kl",
    "halving",
    "logistic_noise",
    "logit",
    "paper_kl",
    "plan_halving",
    "product_logits",
    "ramp",
    "rsample",
    "sample",
]
