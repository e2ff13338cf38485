"""``pgnas.search``: the search on any task, from Python, with the user's own loaders, loss and metric."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn import functional as F

from pgnas.architecture import Architecture
from pgnas.bayes import GibbsPrior, Prior
from pgnas.config import Device, OptimizerName, Precision, RunConfig, Switch
from pgnas.errors import ConfigError, DataError
from pgnas.nn import Counts, Supernet, extract_small
from pgnas.progress import Progress, SilentReporter
from pgnas.stages.candidates import Candidate, best, rank
from pgnas.stages.class_scores import explained
from pgnas.stages.engine import make_engine, own_randomness, seed_step, worth_compiling
from pgnas.stages.epochs import run_epochs
from pgnas.stages.latency import meet_latency
from pgnas.stages.moments import Moments
from pgnas.stages.recipe import AUGMENTATION_FACTOR, Recipe, calibration_batches, prior_of
from pgnas.stages.shedding import require_sheddable
from pgnas.stages.timings import Timings
from pgnas.stages.training import Loader, Loss, Metric, NoStore, Phase, Score, accuracy


@dataclass(frozen=True)
class SearchResult:
    """What :func:`search` found.

    Attributes:
        model: The found network, a plain module in eval mode on the CPU or the search's device.
        architecture: Its architecture.
        supernet: The supernet at the moment of deciding: more architectures can be sampled and extracted from it.
        counts: Its parameters and multiply-adds.
        full: Those of the network as handed in.
        score: The found network's score on the validation loader, which chose it: optimistic.
        candidates: Every ranked candidate, the posterior's mode first.
        history: One row of measurements an epoch.
    """

    model: nn.Module
    architecture: Architecture
    supernet: Supernet = field(repr=False)
    counts: Counts
    full: Counts
    score: Score
    candidates: tuple[Candidate, ...] = field(repr=False)
    history: tuple[Mapping[str, Any], ...] = field(repr=False)


def search(
    supernet: Supernet,
    train_loader: Loader,
    val_loader: Loader,
    *,
    loss: Loss = F.cross_entropy,
    metric: Metric = accuracy,
    epochs: int = 20,
    max_macs: str | None = None,
    max_params: str | None = None,
    max_latency: str | None = None,
    latency_batch: int = 1,
    round_to: int = 1,
    decide_at: str | None = None,
    shed: bool = False,
    candidates: int = 64,
    prior: Prior | None = None,
    data_size: float | None = None,
    optimizer: OptimizerName = "sgd",
    lr: float | None = None,
    weight_decay: float | None = None,
    logit_lr: float = 0.05,
    weights_first: float | None = None,
    recalibrate_norms: bool = True,
    seed: int = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Switch = "auto",
    progress: Progress | None = None,
) -> SearchResult:
    """Learn the posterior of a supernet, rank sub-networks drawn from it, and train the best without noise.

    The supernet handed in is not changed: a copy is trained, and is part of the result. Nothing is written to disk;
    :func:`pgnas.run` does that.

    Under ``torchrun`` all processes call this alike and get the same result: each gives a training loader of its own
    share of every batch (``DistributedSampler``), of equal length, and the same whole validation loader.

    Args:
        supernet: Made by :func:`pgnas.supernet`; its weights and keep probabilities are the starting point.
        train_loader: Batches (input, ..., targets) with a length; ``set_epoch(epoch)`` is called if it has one. The
            inputs have the size of the supernet's example, see :func:`pgnas.extract`.
        val_loader: Batches on which candidates are ranked.
        loss: Mean loss of a batch in nats: (outputs, targets) to a scalar.
        metric: Scores, higher is better: (outputs, targets) to (B,) or their mean; accuracy by default.
        epochs: Epochs in all.
        max_macs: Cap on multiply-adds, ``"40%"`` or ``"2M"``.
        max_params: Cap on parameters.
        max_latency: Cap on the latency on the search's device, ``"60%"`` or ``"8ms"``.
        latency_batch: Examples a batch whose latency is capped.
        round_to: Numbers of channels are brought up to multiples of this.
        decide_at: ``"25%"`` (default with a cap) or ``"never"`` (default without): see the README.
        shed: Channels of gates that have closed leave the supernet while it trains; what is returned is whole. Not with
            auxiliary heads.
        candidates: C, how many are drawn and ranked.
        prior: Over the gates; by default Gibbs with a cap, else the paper's with l^2 = 50.
        data_size: N of the ELBO; by default ten times the training examples.
        optimizer: Of the weights, ``"sgd"`` (Nesterov momentum 0.9) or ``"adamw"``.
        lr: Peak learning rate of the weights; by default 0.1, with AdamW 0.001.
        weight_decay: By default 0 with the paper's prior, which replaces it, else 5e-4, with AdamW 0.05.
        logit_lr: Learning rate of the logits.
        weights_first: Epochs in which weights learn and logits do not; by default a quarter of the supernet's epochs if
            operations are chosen, else none.
        recalibrate_norms: Re-estimate BatchNorm of every candidate on a few training batches. If so, and the decision
            comes before the end, candidates have the average of the supernet's weights over the last steps.
        seed: Seed of noise, candidates and loaders that shuffle by torch's global generator, whose state is left alone.
        device: Where to compute.
        precision: Number format of the forward pass.
        compile: ``torch.compile``.
        progress: Where to report; nowhere by default.

    Raises:
        ConfigError: A setting breaks a rule, or the default loss or metric meets outputs that are not logits.
        DataError: A loader is empty or has no length.
        DivergedError: The loss became NaN or infinite.
    """
    config = RunConfig(
        model="python:", data="python:", out="", epochs=epochs, max_macs=max_macs, max_params=max_params,
        decide_at=decide_at, candidates=candidates, optimizer=optimizer, lr=lr, weight_decay=weight_decay,
        logit_lr=logit_lr, seed=seed,
        device=device, precision=precision, compile=compile, max_latency=max_latency, latency_batch=latency_batch,
        round_to=round_to, channels_per_gate=supernet.space.channels_per_gate, shed="on" if shed else "off",
        weights_first=weights_first,
        average_weights="auto" if recalibrate_norms else "off",
    )  # fmt: skip
    if isinstance(prior, GibbsPrior) and not config.has_cap:
        remedy = "give max_macs, max_params or max_latency"
        raise ConfigError("prior GibbsPrior", "needs a cost to weigh", value="no cap", remedy=remedy)
    if shed:
        require_sheddable(supernet)
    _steps(val_loader, "val_loader")
    steps = _steps(train_loader, "train_loader")
    engine = make_engine(device, precision)
    with own_randomness():  # of loaders that shuffle by the global generator
        seed_step(seed, "calibration")
        calibration = calibration_batches(train_loader)
    (example, *_), _ = engine.batch(calibration[0])
    examples = steps * len(example) * engine.processes.world_size
    timings = Timings(latency_batch=latency_batch, processes=engine.processes)
    trained = copy.deepcopy(supernet)
    engine.place(trained)
    if max_latency is not None:
        trained.device_costs = timings.of(trained, training=False)
    recipe = Recipe(
        config,
        engine,
        *explained(loss, metric),
        supernet.count(supernet.open()),
        epochs,
        steps,
        examples,
        data_size or AUGMENTATION_FACTOR * examples,
        prior or prior_of(config),
        timings,
        None if max_latency is None else trained.measured().network,
    )
    recipe.require_reachable(trained)  # checked before any long work
    searcher = _Searcher(
        recipe, trained, train_loader, val_loader, progress or SilentReporter(), recalibrate_norms, calibration
    )
    with own_randomness():
        seed_step(seed, "search")
        moments = searcher.learn()
        ranked = searcher.rank()
        winner = searcher.choose(ranked)
        module = searcher.train_on(winner, moments)
        score = recipe.score(module, val_loader)
    return SearchResult(
        module.eval(),
        winner.architecture,
        trained,
        winner.counts,
        recipe.full,
        score,
        tuple(ranked),
        tuple(searcher.store.rows),
    )


@dataclass
class _Searcher:
    """One search in memory."""

    recipe: Recipe
    supernet: Supernet
    train_loader: Loader
    val_loader: Loader
    progress: Progress
    recalibrates: bool
    calibration: list[Any]
    store: NoStore = field(default_factory=NoStore)

    def learn(self) -> Moments:
        """Learn the posterior; the moments of the weights' optimiser."""
        recipe = self.recipe
        phase = recipe.posterior_phase(self.supernet, compiled=self._compiles(recipe.full, recipe.decision_epoch))
        self._epochs("search", phase, range(recipe.decision_epoch))
        moments = phase.moments()
        phase.settle(lambda: self.calibration)
        return moments

    def rank(self) -> list[Candidate]:
        """Draw and rank the candidates."""
        self.progress.stage("sample")
        drawn, ranked = self.recipe.draw(self.supernet), []
        options: dict[str, Any] = {"recalibrated": self.recalibrates, "processes": self.recipe.engine.processes}
        for candidate in rank(self.supernet, drawn, self._scorer(), **options):
            ranked.append(candidate)
            self.progress.advance(len(ranked), len(drawn))
        return ranked

    def choose(self, ranked: list[Candidate]) -> Candidate:
        """The best candidate, brought under the latency cap by the clock if there is one."""
        winner = best(ranked)
        if self.recipe.config.max_latency is None:
            return winner
        (example, *_), _ = self.recipe.engine.batch(self.calibration[0])
        scorer = self._scorer()
        row = self.recipe.engine.processes.from_first(
            lambda: meet_latency(
                self.recipe, self.supernet, winner, scorer, example, recalibrated=self.recalibrates
            ).candidate.to_row()
        )
        return Candidate.from_row(row)

    def train_on(self, winner: Candidate, moments: Moments) -> nn.Module:
        """Extract the winner and train it for the epochs that remain."""
        recipe = self.recipe
        small = extract_small(self.supernet, winner.architecture, heads=True, re_estimated=self.recalibrates)
        self._scorer()(small.module)
        recipe.engine.average_statistics(small.module)
        remaining = recipe.epochs - recipe.decision_epoch
        if remaining > 0 and any(True for _ in small.module.parameters()):
            phase = recipe.found_phase(small, moments, compiled=self._compiles(winner.counts, remaining))
            self._epochs("train", phase, range(recipe.decision_epoch, recipe.epochs))
        return small.module

    def _epochs(self, title: str, phase: Phase, epochs: range) -> None:
        self.progress.stage(title)
        run_epochs(
            phase,
            self.train_loader,
            epochs=epochs,
            seed=self.recipe.config.seed,
            store=self.store,
            progress=self.progress,
            validate=lambda: self.recipe.score(phase.network, self.val_loader),
        )

    def _scorer(self) -> Callable[[nn.Module], Score]:
        return self.recipe.scorer(self.val_loader, self.calibration if self.recalibrates else None)

    def _compiles(self, counts: Counts, epochs: int) -> bool:
        recipe = self.recipe
        compiled, reason = worth_compiling(
            recipe.config.compile, recipe.planned_macs(counts, epochs), recipe.engine.device
        )
        self.progress.note(reason)
        return compiled


def _steps(loader: Loader, name: str) -> int:
    try:
        steps = len(loader)  # type: ignore[arg-type]
    except TypeError as error:
        raise DataError(name, "must have a length", remedy="give a DataLoader over a map-style data set") from error
    if steps < 1:
        raise DataError(name, "must have at least one batch", value=0, remedy="check drop_last and the data set")
    return steps
