"""The one public door of the package, and what stands behind it."""

import ast
import sys
from pathlib import Path

import pgnas.bayes


def test_the_public_names() -> None:
    assert set(pgnas.bayes.__all__) == {
        *("drop_to_keep", "entropy", "logistic_noise", "logit", "product_logits", "rsample", "sample"),
        *("Choices", "gumbel_noise"),
        *("PRIORS", "BernoulliPrior", "GibbsPrior", "KLContext", "PaperPrior", "Prior"),
        *("bernoulli_kl", "gibbs_kl", "paper_kl"),
        *("BilinearCost", "CapController", "ElboTerms", "elbo", "ramp"),
        *("Interval", "bootstrap_calibration", "bootstrap_mean", "prediction", "probability_better", "wilson"),
        *("Bin", "Predictive", "Uncertainty", "brier", "fit_temperature", "reliability", "tempered"),
        *("Retargeted", "cost_slopes", "retarget"),
        *("HalvingPlan", "Race", "RaceResult", "Request", "elimination", "exhaustive", "halving", "plan_halving"),
    }
    assert all(hasattr(pgnas.bayes, name) for name in pgnas.bayes.__all__)


def test_the_mathematics_needs_torch_alone() -> None:
    for path in Path(pgnas.bayes.__file__).parent.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)]
        for name in names:
            root = name.split(".")[0]
            assert (
                root == "torch" or root in sys.stdlib_module_names or name.startswith(("pgnas.bayes", "pgnas.errors"))
            )
