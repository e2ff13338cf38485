"""The mathematics of PGNAS on tensors: gates, priors, expected cost, ELBO, multiplier, racing, uncertainty.

Needs torch alone.
"""

from pgnas.bayes.categorical import Choices, gumbel_noise
from pgnas.bayes.concrete import drop_to_keep, entropy, logistic_noise, logit, product_logits, rsample, sample
from pgnas.bayes.cost import BilinearCost
from pgnas.bayes.elbo import ElboTerms, elbo
from pgnas.bayes.intervals import (
    Interval,
    bootstrap_calibration,
    bootstrap_mean,
    prediction,
    probability_better,
    wilson,
)
from pgnas.bayes.multiplier import CapController, ramp
from pgnas.bayes.predictive import (
    Bin,
    Predictive,
    Uncertainty,
    brier,
    fit_temperature,
    reliability,
    tempered,
)
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
from pgnas.bayes.retarget import Retargeted, cost_slopes, retarget

__all__ = [
    "PRIORS",
    "BernoulliPrior",
    "BilinearCost",
    "Bin",
    "CapController",
    "Choices",
    "ElboTerms",
    "GibbsPrior",
    "HalvingPlan",
    "Interval",
    "KLContext",
    "PaperPrior",
    "Predictive",
    "Prior",
    "Race",
    "RaceResult",
    "Request",
    "Retargeted",
    "Uncertainty",
    "bernoulli_kl",
    "bootstrap_calibration",
    "bootstrap_mean",
    "brier",
    "cost_slopes",
    "drop_to_keep",
    "elbo",
    "elimination",
    "entropy",
    "exhaustive",
    "fit_temperature",
    "gibbs_kl",
    "gumbel_noise",
    "halving",
    "logistic_noise",
    "logit",
    "paper_kl",
    "plan_halving",
    "prediction",
    "probability_better",
    "product_logits",
    "ramp",
    "reliability",
    "retarget",
    "rsample",
    "sample",
    "tempered",
    "wilson",
]
