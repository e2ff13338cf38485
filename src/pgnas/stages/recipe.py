"""How a search is done, apart from where its data come from and where its results go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pgnas.amounts import Amount
from pgnas.bayes import BernoulliPrior, GibbsPrior, PaperPrior, Prior
from pgnas.config import WEIGHT_DECAY, RunConfig, Selections
from pgnas.errors import ConfigError
from pgnas.nn import Counts, SmallNetwork, Supernet
from pgnas.nn.auxiliary import Headed
from pgnas.nn.cost import CostName
from pgnas.nn.shaping import PickRule, Shaper, by_share, by_time
from pgnas.seeds import derive_seed
from pgnas.stages.candidates import Candidate, Caps
from pgnas.stages.engine import Engine, compile_worth
from pgnas.stages.fitting import Fitter, draw
from pgnas.stages.moments import Moments, each_moment, renamed
from pgnas.stages.phases import NetworkPhase, PosteriorPhase, PosteriorSettings
from pgnas.stages.schedule import CosineSchedule, MultistepSchedule, Schedule, WarmRestarts, cosine_schedule
from pgnas.stages.shedding import Pace, Shedder, SheddingRule, Spending, affordable
from pgnas.stages.timings import Timings
from pgnas.stages.training import Judge, Loader, Loss, Metric, Score, evaluate, judge_examples, recalibrate

AVERAGED_SHARE, AVERAGED_MOST = 0.05, 100.0
"""Steps over which a supernet's weights are averaged: this share of those to the decision, and no more than so many."""
CALIBRATION_BATCHES = 8
"""Training batches on which BatchNorm is re-estimated."""
FORWARD_SHARE = 1 / 3
"""A forward pass costs a third of a training step (forward, and backward by data and by weights)."""
FIRST_SHARE = 0.25
"""Share of the supernet's epochs in which only weights learn, where operations are chosen: without it the logits follow
the operations that are easiest to train at first, those without weights."""
LATE_DECISION = 0.5
"""Share of the run from which on a decision is late: most of the run is then search, and what it costs counts."""
LATE_REACH = 0.45
"""Share of the search at which caps are in full force where the decision is late, or there is none before the end: what
remains of it is trained at the caps' cost, as is what remains of the run after a decision."""
RECOMPILING_SHARE = 1.5
"""Multiply-adds that repay another warm-up of ``torch.compile`` if saved, as a multiple of those that repay the first.

A compiled step of a supernet of 21.7 M multiply-adds took 59 ms for 128 images on two cores: a minute has 2.8e12.
"""
AUGMENTATION_FACTOR = 10.0
"""N of the ELBO is this many times the training examples when they are augmented, as in the paper."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the phases of a search need to know.

    Attributes:
        config: The settings.
        engine: Where to compute.
        loss: Mean loss of a batch in nats.
        metric: Scores of a batch, higher is better.
        full: Counts of the full network.
        epochs: Epochs of the whole run; with a budget those of the full network that it pays for.
        steps_an_epoch: Optimiser steps an epoch.
        examples_an_epoch: Training examples an epoch.
        data_size: N of the ELBO.
        prior: Prior over the gates.
        timings: What operations take on this device, measured when first asked for.
        full_latency: Seconds a batch of the full network, if latency is capped.
        budget: Epochs of the full network that the whole run may cost, if it has a budget.
    """

    config: RunConfig
    engine: Engine
    loss: Loss
    metric: Metric
    full: Counts
    epochs: int
    steps_an_epoch: int
    examples_an_epoch: int
    data_size: float
    prior: Prior
    timings: Timings = field(default_factory=Timings)
    full_latency: float | None = None
    budget: float | None = None

    @property
    def caps(self) -> Caps:
        """The caps as counts and seconds."""
        return caps_of(self.config, self.full_costs)

    @property
    def latency_is_relative(self) -> bool:
        """Whether the latency cap is a share of the full network's."""
        text = self.config.max_latency
        return text is not None and Amount.parse_latency(text, subject="--max-latency").relative

    @property
    def full_costs(self) -> dict[CostName, float]:
        """What the full network costs."""
        costs: dict[CostName, float] = {"params": self.full.params, "macs": self.full.macs}
        return costs if self.full_latency is None else costs | {"latency": self.full_latency}

    @property
    def decision_epoch(self) -> int:
        """Epochs of the supernet, as long as none of its gates leaves; the found network has the rest."""
        share = self.config.decision_share()
        return self.epochs if share is None else min(self.epochs, max(1, round(share * self.epochs)))

    def decision_step(self, first: float = 0.0) -> float:
        """The place in the schedule at which the supernet's epochs end.

        With a budget it is the decision's share of it, or what the first of these epochs costs if that alone is more.

        Args:
            first: Its cost in epochs of the full network.
        """
        share = self.config.decision_share()
        if self.budget is None or share is None:
            return self.decision_epoch * self.steps_an_epoch
        return min(1.0, max(share, first / self.budget)) * self.epochs * self.steps_an_epoch

    def weights_first(self, supernet: Supernet) -> float:
        """Epochs of the weights alone, at the start; some by default where operations are chosen, to let them learn."""
        if self.config.weights_first is not None:
            return min(self.config.weights_first, self.decision_epoch)
        return FIRST_SHARE * self.decision_epoch if supernet.space.operations else 0.0

    @property
    def schedule(self) -> Schedule:
        """The learning rate over the whole run."""
        return self.stretched_schedule(self.epochs)

    def stretched_schedule(self, epochs: int) -> Schedule:
        """The run's learning rate for a training of another length, warm-up, milestones and restarts in proportion."""
        return schedule_of(self.config, epochs * self.steps_an_epoch, epochs * self.steps_an_epoch / self.epochs)

    @property
    def weight_decay(self) -> float:
        """L2 decay of the weights while gates are random; the paper's prior replaces it."""
        if self.config.weight_decay is not None:
            return self.config.weight_decay
        return 0.0 if isinstance(self.prior, PaperPrior) else WEIGHT_DECAY[self.config.optimizer]

    @property
    def found_weight_decay(self) -> float:
        """L2 decay once the gates are decided: the paper's weight term (l^2 / N) |w|^2 is then a plain one."""
        if self.config.weight_decay is None and isinstance(self.prior, PaperPrior):
            return 2 * self.prior.length_scale_sq / self.data_size
        return self.weight_decay

    def planned_macs(self, counts: Counts, epochs: int) -> float:
        """Forward multiply-adds of so many epochs of a network."""
        return float(counts.macs) * epochs * self.examples_an_epoch

    def cost(self, counts: Counts) -> float:
        """An epoch of a network, in epochs of the full one."""
        return counts.macs / self.full.macs

    def posterior_phase(self, supernet: Supernet, *, compiled: bool, begun: bool = False) -> PosteriorPhase:
        """The phase that learns the posterior.

        Args:
            supernet: The supernet.
            compiled: Whether to compile the forward pass.
            begun: Whether the supernet comes from another search: its caps fall from what it costs now, and gates that
                have decided to close leave at once if the run sheds.
        """
        shedder = self._shedder(supernet, compiled) if self.config.sheds and not supernet.has_heads else None
        first = shedder.macs_at_start() / self.full.macs if begun and shedder is not None else 1.0
        end, share = self.decision_step(first), self.config.decision_share()
        budget = None if self.budget is None else self.budget * (share or 1.0)
        shares: dict[CostName, float] = {kind: cap / self.full_costs[kind] for kind, cap in self.caps.items()}
        settings = PosteriorSettings(
            self.prior,
            self.data_size,
            shares,
            end,
            reach=PosteriorSettings.reach if share is not None and share < LATE_DECISION else LATE_REACH,
            logit_lr=self.config.logit_lr if self.config.fixed_drop is None else None,
            weights_only=round(self.weights_first(supernet) * self.steps_an_epoch),
            optimizer=self.config.optimizer,
            weight_decay=self.weight_decay,
            averaging=min(AVERAGED_MOST, AVERAGED_SHARE * end) if self.config.averages_weights else 0.0,
            begun={kind: float(supernet.expected_cost(kind).detach()) for kind in shares} if begun else {},
        )
        phase = PosteriorPhase(
            supernet,
            settings,
            engine=self.engine,
            schedule=self.schedule,
            loss=self.loss,
            compiled=compiled,
            shedder=shedder,
            spending=Spending(self.full.macs, self.steps_an_epoch, end, self.decision_epoch, budget),
        )
        if begun:
            phase.shed_closed()
        return phase

    def _shedder(self, supernet: Supernet, compiled: bool) -> Shedder:
        worth = RECOMPILING_SHARE * compile_worth(self.engine.device)
        rule = SheddingRule.compiled(worth) if compiled else SheddingRule()
        return Shedder.of(supernet, rule, examples=self.examples_an_epoch)

    def remaining(
        self, decided: int, spent: float, found: Counts, *, searched: float = 0.0, shared: float = 0.0
    ) -> tuple[range, Pace | None]:
        """The epochs of the found network, and where they lie in the schedule.

        Args:
            decided: Epochs of the supernet.
            spent: What they and the ranking cost, in epochs of the full network.
            found: Counts of the found network.
            searched: Of what was spent, the epochs of the supernet.
            shared: Of what was spent, training it together with others: the schedule has gone on by that.
        """
        if self.budget is None:
            return range(decided, self.epochs), None
        left = 0.0 if self.config.decision_share() is None else self.budget - spent
        stop, steps = decided + affordable(left, self.cost(found)), self.epochs * self.steps_an_epoch
        position = self.decision_step(searched if decided == 1 else 0.0) + steps * shared / self.budget
        return range(decided, stop), Pace(decided, position, stop, steps, self.steps_an_epoch)

    def found_phase(
        self,
        small: SmallNetwork,
        moments: Moments,
        *,
        compiled: bool,
        pace: Pace | None = None,
        name: str = "train",
        schedule: Schedule | None = None,
    ) -> NetworkPhase:
        """The phase that trains an extracted network on, its auxiliary heads included, with the optimiser's moments.

        Args:
            small: The network.
            moments: Of the supernet's weights; those without begin without.
            compiled: Whether to compile the forward pass.
            pace: Where its steps lie in the schedule; None: where the run's steps do.
            name: Names its checkpoints and rows.
            schedule: Learning rate; None: the run's.
        """
        network = small.module if small.headed is None else self.engine.place(Headed(small.headed))
        prefix = "" if small.headed is None else "network."
        names = {new: new.removeprefix(prefix) for new, _ in network.named_parameters()}
        return NetworkPhase(
            network,
            name=name,
            engine=self.engine,
            schedule=schedule or self.schedule,
            loss=self.loss,
            weight_decay=self.found_weight_decay,
            optimizer=self.config.optimizer,
            moments=each_moment(renamed(moments, names), lambda new, value: small.take(names[new], value)),
            compiled=compiled,
            pace=pace,
        )

    def plain_phase(self, network: nn.Module, *, name: str, schedule: Schedule, compiled: bool = False) -> NetworkPhase:
        """The phase that trains any other network, on the engine's device, as the run's found one is trained.

        Args:
            network: The network.
            name: Names its checkpoints and rows.
            schedule: Learning rate.
            compiled: Whether to compile the forward pass.
        """
        return NetworkPhase(
            network,
            name=name,
            engine=self.engine,
            schedule=schedule,
            loss=self.loss,
            optimizer=self.config.optimizer,
            weight_decay=self.found_weight_decay,
            compiled=compiled,
        )

    def draw(self, supernet: Supernet) -> list[Candidate]:
        """The candidates; the same for the same seed and posterior."""
        return draw(
            supernet,
            self.config.candidates,
            self.caps,
            generator=torch.Generator().manual_seed(derive_seed(self.config.seed, "candidates")),
            shaper=self.shaper(supernet),
            with_mode=self.config.fixed_drop is None,  # at a fixed rate the mode is the full network, or nothing
        )

    def require_reachable(self, supernet: Supernet, caps: Caps | None = None, flag: str = "--max-{}") -> None:
        """Check that some architecture meets the caps, with its channels rounded as the settings say.

        Args:
            supernet: The supernet.
            caps: The caps; None: the run's.
            flag: The option by which a cost, put into it by name, was capped.

        Raises:
            ConfigError: None does: what has no gate, or is kept of each gate, is over a cap.
        """
        shaper = Shaper(supernet, round_to=self.config.round_to)
        Fitter(supernet, self.caps if caps is None else caps, shaper).require_reachable(flag)

    def shaper(self, supernet: Supernet) -> Shaper:
        """What makes candidates easy on hardware, as the settings say."""
        rules: dict[Selections, Callable[[], PickRule | None]] = {
            "on": lambda: by_share,
            "measured": lambda: self._by_time(supernet),
        }
        rule = rules.get(self.config.selections, lambda: None)()
        return Shaper(supernet, reads_all=rule, round_to=self.config.round_to)

    def _by_time(self, supernet: Supernet) -> PickRule:
        """Picks must pay where the network is used, and where it is still to be trained."""
        rules = [by_time(supernet, self.timings.of(supernet, training=False))]
        if self.decision_epoch < self.epochs:
            rules.append(by_time(supernet, self.timings.of(supernet, training=True)))
        return lambda pick: any(rule(pick) for rule in rules)

    def score(self, network: nn.Module, loader: Loader) -> Score:
        """Score a network."""
        return evaluate(network, loader, engine=self.engine, loss=self.loss, metric=self.metric)

    def scorer(self, loader: Loader, calibration: Sequence[Any] | None) -> Callable[[nn.Module], Score]:
        """Scores extracted networks, after re-estimating BatchNorm if calibration batches are given."""

        def score(network: nn.Module) -> Score:
            self._prepare(network, calibration)
            return self.score(network, loader)

        return score

    def judge(self, loader: Callable[[Tensor], Loader], calibration: Sequence[Any] | None) -> Judge:
        """Scores extracted networks on some held-out examples, after re-estimating BatchNorm if batches are given.

        Args:
            loader: Batches of the examples with these numbers, (B,).
            calibration: Training batches.
        """

        def judge(network: nn.Module, examples: Tensor) -> tuple[Tensor, float]:
            self._prepare(network, calibration)
            return judge_examples(network, loader(examples), engine=self.engine, loss=self.loss, metric=self.metric)

        return judge

    def _prepare(self, network: nn.Module, calibration: Sequence[Any] | None) -> None:
        """Place an extracted network, and re-estimate BatchNorm if calibration batches are given."""
        self.engine.place(network)
        if calibration is not None:
            recalibrate(network, calibration, engine=self.engine)


def calibration_batches(loader: Loader) -> list[Any]:
    """The first few training batches, for BatchNorm statistics."""
    return [batch for batch, _ in zip(loader, range(CALIBRATION_BATCHES), strict=False)]


def auxiliary_loss(loss: Loss, weight: float) -> Loss:
    """The loss of a network that may have auxiliary heads: loss(main) + weight * sum of loss(auxiliary).

    The outputs are a tensor, or a tuple whose first is the main one; ``None`` stands for a head that is off.
    """

    def total(outputs: Any, targets: Any) -> Tensor:
        main, *others = outputs if isinstance(outputs, tuple) else (outputs,)
        value = loss(main, targets)
        for other in others:
            if other is not None:
                value = value + weight * loss(other, targets)
        return value

    return total


def schedule_of(config: RunConfig, steps: int, steps_an_epoch: float) -> Schedule:
    """The learning rate that a run's settings name.

    Args:
        config: The settings.
        steps: Optimiser steps in all.
        steps_an_epoch: Steps of what the settings call an epoch.
    """
    if config.schedule == "cosine" and config.warmup is None:
        return replace(cosine_schedule(config.peak_lr, steps), floor=config.lr_floor)
    warmup = round((config.warmup or 0.0) * steps_an_epoch)
    if config.schedule == "cosine":
        return CosineSchedule(config.peak_lr, steps, warmup, floor=config.lr_floor)
    if config.schedule == "multistep":
        milestones = tuple(milestone * steps_an_epoch for milestone in config.milestones)
        return MultistepSchedule(config.peak_lr, steps, warmup, milestones)
    first = max(1.0, config.restart_epochs * steps_an_epoch)
    return WarmRestarts(config.peak_lr, steps, warmup, first, config.restart_growth, config.lr_floor)


def caps_of(config: RunConfig, full: Mapping[CostName, float]) -> Caps:
    """The caps of a run as counts and seconds.

    Args:
        config: The settings.
        full: What the full network costs; its latency may be missing if it is not capped.

    Raises:
        ConfigError: A cap is not between 1 (for latency: 0) and the full network's cost.
    """
    caps: dict[CostName, float] = {}
    texts: dict[CostName, str | None] = {"macs": config.max_macs, "params": config.max_params}
    for kind, text in texts.items():
        if text is None:
            continue
        count = int(full[kind])
        cap = int(Amount.parse(text, subject=f"--max-{kind}").of(count))
        if not 1 <= cap <= count:
            raise ConfigError(
                f"--max-{kind}", f"must lie between 1 and the network's {count:,}", value=text, remedy="change the cap"
            )
        caps[kind] = cap
    if config.max_latency is not None:
        seconds = full["latency"]
        caps["latency"] = Amount.parse_latency(config.max_latency, subject="--max-latency").of(seconds)
        if caps["latency"] > seconds:
            rule = f"must be at most the network's own {1e3 * seconds:.3g} ms on this device"
            raise ConfigError("--max-latency", rule, value=config.max_latency, remedy="change the cap")
    return caps


def prior_of(config: RunConfig) -> Prior:
    """The prior that a run's settings name."""
    if config.prior_name == "paper":
        return PaperPrior(config.length_scale_sq)
    return BernoulliPrior(config.prior_drop) if config.prior_name == "bernoulli" else GibbsPrior()
