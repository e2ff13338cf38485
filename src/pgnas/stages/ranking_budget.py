"""What ranking by halving may spend, checked before the search."""

from __future__ import annotations

from pgnas.bayes.racing import least_budget, plan_halving
from pgnas.config import RunConfig
from pgnas.errors import ConfigError, InputError


def require_ranking_budget(config: RunConfig, images: int) -> None:
    """Check that halving can rank as many candidates as are asked for; with fewer it can if it can with these.

    Args:
        config: The settings.
        images: Held-out images that candidates are ranked on.

    Raises:
        ConfigError: It cannot.
    """
    if config.ranking != "halving":
        return
    try:
        plan_halving(config.candidates, images, config.ranking_budget)
    except InputError as error:
        remedy = f"give {least_budget(config.candidates, images):g} or more, or --ranking exhaustive"
        raise ConfigError("--ranking-budget", error.rule, value=config.ranking_budget, remedy=remedy) from error


def budget_for(config: RunConfig, drawn: int) -> float:
    """The share of the passes over the candidates drawn that pays as many as are meant for those asked for.

    Args:
        config: The settings.
        drawn: How many were drawn: a posterior that has decided nearly everything has few.
    """
    return min(1.0, config.ranking_budget * max(1.0, config.candidates / drawn))
