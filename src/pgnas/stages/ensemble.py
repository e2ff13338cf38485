"""The posterior as an ensemble: sampled sub-networks with the posterior's weights, and what they predict together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgnas.architecture import Architecture
from pgnas.bayes import Predictive, Uncertainty
from pgnas.errors import ConfigError
from pgnas.nn import Supernet, extract_small
from pgnas.seeds import derive_seed
from pgnas.stages.context import Context
from pgnas.stages.engine import Engine
from pgnas.stages.training import Loader, Score, evaluate, recalibrate

SAMPLES = 16
"""M, unless another number is asked for."""
MOST_SAMPLES = 100_000


@dataclass(frozen=True)
class Member:
    """A sub-network of the ensemble.

    Attributes:
        architecture: What it keeps.
        weight: How often it was drawn.
    """

    architecture: Architecture
    weight: int


Weighted = tuple[nn.Module, float]
"""A network in eval mode, on the device, and its weight."""


@dataclass(eq=False)
class Gathered:
    """What networks predict together on some images.

    Attributes:
        predictive: Their average.
        labels: (N,).
        scores: Of each network by itself.
    """

    predictive: Predictive = field(default_factory=Predictive)
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    scores: list[Score] = field(default_factory=list)

    @property
    def log_probs(self) -> Tensor:
        """The logarithm of the average, (N, K) float64."""
        return self.predictive.log_probs()

    @property
    def uncertainty(self) -> Uncertainty:
        """Of the average."""
        return self.predictive.uncertainty()


def draw_members(supernet: Supernet, samples: int, *, seed: int) -> list[Member]:
    """Independent samples of the posterior, equal ones merged; the caps of the search do not bind them.

    Args:
        supernet: The supernet, with the posterior's logits.
        samples: M.
        seed: Of the run; more samples begin with the same ones.
    """
    draws = Counter(draw_architectures(supernet, samples, seed=seed))
    return [Member(architecture, weight) for architecture, weight in draws.items()]


def draw_architectures(supernet: Supernet, samples: int, *, seed: int) -> list[Architecture]:
    """The samples of :func:`draw_members` one by one."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "ensemble"))
    return [supernet.sample(generator=generator) for _ in range(samples)]


def require_samples(samples: int, *, least: int = 1) -> None:
    """Check a number of samples.

    Raises:
        ConfigError: It is none.
    """
    if not least <= samples <= MOST_SAMPLES:
        rule = f"must lie in [{least}, {MOST_SAMPLES}]"
        raise ConfigError("--samples", rule, value=samples, remedy="choose a value inside")


def posterior_networks(run: Context, samples: int) -> Iterator[Weighted]:
    """The members one after another, each extracted with the posterior's weights; BatchNorm as the run ranked them."""
    members = draw_members(run.posterior, samples, seed=run.config.seed)
    networks = member_networks(run, [member.architecture for member in members])
    for number, (member, network) in enumerate(zip(members, networks, strict=True), start=1):
        yield network, float(member.weight)
        run.progress.advance(number, len(members))


def member_networks(run: Context, architectures: Sequence[Architecture]) -> Iterator[nn.Module]:
    """The network of each architecture, made when it is asked for; see :func:`posterior_networks`."""
    calibration = run.ranking_calibration()
    for architecture in architectures:
        small = extract_small(run.posterior, architecture, re_estimated=calibration is not None)
        network = run.engine.place(small.module)
        if calibration is not None:
            recalibrate(network, calibration, engine=run.engine)
        yield network


@dataclass(frozen=True, eq=False)
class Predicted:
    """What one network predicts on some images, from one pass over them.

    Attributes:
        log_probs: (N, K) float64, on the CPU.
        labels: (N,).
        score: Accuracy and cross-entropy, as training is watched by.
    """

    log_probs: Tensor
    labels: Tensor
    score: Score


def predict(network: nn.Module, loader: Loader, *, engine: Engine) -> Predicted:
    """What a network predicts for a loader, in eval mode, in this process alone."""
    rows: list[Tensor] = []
    labels: list[Tensor] = []

    def keep(outputs: Tensor, targets: Tensor) -> None:
        rows.append(F.log_softmax(outputs.double().cpu(), 1))
        labels.append(targets.cpu())

    with engine.processes.alone():
        score = evaluate(network, loader, engine=engine, loss=F.cross_entropy, each=keep)
    return Predicted(torch.cat(rows), torch.cat(labels), score)


def gather(
    networks: Iterable[Weighted],
    loaders: Mapping[str, Loader],
    *,
    engine: Engine,
    each: Callable[[str, Tensor, Tensor], None] = lambda name, log_probs, labels: None,
) -> dict[str, Gathered]:
    """What the networks predict together on each of some sets of images; one network is held at a time.

    Args:
        networks: The networks.
        loaders: The sets, by name.
        engine: Where.
        each: Is shown (set, log-probabilities (N, K), labels (N,)) of every single network.
    """
    found = {name: Gathered() for name in loaders}
    for network, weight in networks:
        for name, loader in loaders.items():
            predicted = predict(network, loader, engine=engine)
            each(name, predicted.log_probs, predicted.labels)
            found[name].predictive.add(predicted.log_probs, weight=weight)
            found[name].labels = predicted.labels
            found[name].scores.append(predicted.score)
    return found
