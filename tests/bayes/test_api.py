"""The one public door of the package, and what stands behind it."""

import subprocess
import sys

import pgnas.bayes


def test_the_public_names() -> None:
    assert set(pgnas.bayes.__all__) == {
        *("drop_to_keep", "entropy", "logistic_noise", "logit", "product_logits", "rsample", "sample"),
        *("PRIORS", "BernoulliPrior", "GibbsPrior", "KLContext", "PaperPrior", "Prior"),
        *("bernoulli_kl", "gibbs_kl", "paper_kl"),
        *("BilinearCost", "CapController", "ElboTerms", "elbo", "ramp"),
    }
    assert all(hasattr(pgnas.bayes, name) for name in pgnas.bayes.__all__)


def test_it_imports_nothing_of_pgnas_but_the_errors() -> None:
    code = "import sys, pgnas.bayes; print(*sorted(m for m in sys.modules if m.startswith('pgnas.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert all(name == "pgnas.errors" or name.startswith("pgnas.bayes") for name in loaded)
