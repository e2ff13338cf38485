"""``pgnas.search``: the search on any task, from Python, with the user's own loaders, loss and metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pgnas.architecture import Architecture
from pgnas.bayes import GibbsPrior, PaperPrior, Prior
from pgnas.config import Amount, Device, Precision, RunConfig, Switch
from pgnas.errors import DataError
from pgnas.nn import Counts, Supernet, extract_small
from pgnas.nn.cost import CostName
from pgnas.progress import Progress, SilentReporter
from pgnas.seeds import derive_seed
from pgnas.stages.candidates import Candidate, best, draw, rank
from pgnas.stages.engine import make_engine, worth_compiling
from pgnas.stages.phases import NetworkPhase, PosteriorPhase, PosteriorSettings
from pgnas.stages.schedule import cosine_schedule
from pgnas.stages.training import Loader, Loss, Metric, NoStore, Score, accuracy, evaluate, recalibrate, run_epochs

CALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class SearchResult:
    """What :func:`search` found.

    Attributes:
        model: The found network, a plain module in eval mode on the CPU or the search's device.
        architecture: Its architecture, of the supernet handed in.
        counts: Its parameters and multiply-adds.
        full: Those of the network as handed in.
        score: The found network's score on the validation loader, which chose it: optimistic.
        candidates: Every ranked candidate, the posterior's mode first.
        history: One row of measurements an epoch.
    """

    model: nn.Module
    architecture: Architecture
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
    decide_at: str | None = None,
    candidates: int = 64,
    prior: Prior | None = None,
    data_size: float | None = None,
    lr: float = 0.1,
    weight_decay: float | None = None,
    logit_lr: float = 0.05,
    recalibrate_norms: bool = True,
    seed: int = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Switch = "auto",
    progress: Progress | None = None,
) -> SearchResult:
    """Learn the posterior of a supernet, rank sub-networks drawn from it, and train the best without noise.

    The supernet handed in is *trained*: afterwards it holds the posterior at the moment of deciding, so that more
    architectures can be sampled and extracted from it. Nothing is written to disk; :func:`pgnas.run` does that.

    Args:
        supernet: Made by :func:`pgnas.supernet`.
        train_loader: Batches (input, ..., targets) with a length; ``set_epoch(epoch)`` is called if it has one.
        val_loader: Batches on which candidates are ranked.
        loss: Mean loss of a batch in nats: (outputs, targets) to a scalar.
        metric: Scores, higher is better: (outputs, targets) to (B,) or their mean; accuracy by default.
        epochs: Epochs in all.
        max_macs: Cap on multiply-adds, ``"40%"`` or ``"2M"``.
        max_params: Cap on parameters.
        decide_at: ``"25%"`` (default with a cap) or ``"never"`` (default without): see the README.
        candidates: C, how many are drawn and ranked.
        prior: Over the gates; by default Gibbs with a cap, else the paper's with l^2 = 50.
        data_size: N of the ELBO; by default ten times the training examples.
        lr: Peak learning rate of the weights.
        weight_decay: By default 0 with the paper's prior, which replaces it, else 5e-4.
        logit_lr: Learning rate of the logits.
        recalibrate_norms: Re-estimate BatchNorm of every candidate on a few training batches.
        seed: Seed of noise and candidates; seed your loaders yourself.
        device: Where to compute.
        precision: Number format of the forward pass.
        compile: ``torch.compile``.
        progress: Where to report; nowhere by default.

    Raises:
        ConfigError: A setting breaks a rule.
        DataError: A loader is empty or has no length.
        DivergedError: The loss became NaN or infinite.
    """
    config = RunConfig(
        model="python:", data="python:", out="", epochs=epochs, max_macs=max_macs, max_params=max_params,
        decide_at=decide_at, candidates=candidates, lr=lr, weight_decay=weight_decay, logit_lr=logit_lr, seed=seed,
        device=device, precision=precision, compile=compile,
    )  # fmt: skip
    progress = progress or SilentReporter()
    engine = make_engine(device, precision)
    steps = _steps(train_loader, "train_loader")
    _steps(val_loader, "val_loader")
    prior = prior or (GibbsPrior() if config.has_cap else PaperPrior(config.length_scale_sq))
    decay = weight_decay if weight_decay is not None else (0.0 if prior.needs_weights else 5e-4)
    examples = steps * len(next(iter(train_loader))[-1])
    full = supernet.count(supernet.open())
    caps: dict[CostName, int] = {}
    for kind, text in (("macs", max_macs), ("params", max_params)):
        if text is not None:
            caps[kind] = Amount.parse(text, subject=f"max_{kind}").of(getattr(full, kind))  # type: ignore[index]
    share = config.decision_share()
    decision = epochs if share is None else min(epochs, max(1, round(share * epochs)))
    schedule = cosine_schedule(lr, epochs * steps)
    engine.place(supernet)
    compiled, reason = worth_compiling(compile, float(full.macs) * decision * examples, engine.device)
    progress.note(reason)
    store = NoStore()
    phase = PosteriorPhase(
        supernet,
        PosteriorSettings(
            prior,
            data_size or 10.0 * examples,
            {kind: cap / getattr(full, kind) for kind, cap in caps.items()},
            decision * steps,
            logit_lr=logit_lr,
            weight_decay=decay,
        ),
        engine=engine,
        schedule=schedule,
        loss=loss,
        compiled=compiled,
    )

    def score(network: nn.Module) -> Score:
        return evaluate(network, val_loader, engine=engine, loss=loss, metric=metric)

    progress.stage("search")
    run_epochs(
        phase,
        train_loader,
        epochs=range(decision),
        seed=seed,
        store=store,
        progress=progress,
        validate=lambda: score(supernet),
    )
    calibration = [batch for batch, _ in zip(train_loader, range(CALIBRATION_BATCHES), strict=False)]

    def calibrated_score(network: nn.Module) -> Score:
        engine.place(network)
        if recalibrate_norms:
            recalibrate(network, calibration, engine=engine)
        return score(network)

    progress.stage("sample")
    generator = torch.Generator().manual_seed(derive_seed(seed, "candidates"))
    ranked = []
    drawn = draw(supernet, candidates, caps, generator=generator)
    for candidate in rank(supernet, drawn, calibrated_score):
        ranked.append(candidate)
        progress.advance(len(ranked), len(drawn))
    winner = best(ranked)
    small = extract_small(supernet, winner.architecture)
    calibrated_score(small.module)
    if decision < epochs:
        progress.stage("train")
        momentum = phase.momentum()
        names = dict(small.module.named_parameters())
        second = NetworkPhase(
            small.module,
            name="train",
            engine=engine,
            schedule=schedule,
            loss=loss,
            weight_decay=decay,
            buffers={name: small.take(name, value) for name, value in momentum.items() if name in names},
            compiled=worth_compiling(
                compile, float(winner.counts.macs) * (epochs - decision) * examples, engine.device
            )[0],
        )
        run_epochs(
            second,
            train_loader,
            epochs=range(decision, epochs),
            seed=seed,
            store=store,
            progress=progress,
            validate=lambda: score(small.module),
        )
    return SearchResult(
        small.module.eval(),
        winner.architecture,
        winner.counts,
        full,
        score(small.module),
        tuple(ranked),
        tuple(store.rows),
    )


def _steps(loader: Loader, name: str) -> int:
    try:
        steps = len(loader)  # type: ignore[arg-type]
    except TypeError as error:
        raise DataError(name, "must have a length", remedy="give a DataLoader over a map-style data set") from error
    if steps < 1:
        raise DataError(name, "must have at least one batch", value=0, remedy="check drop_last and the data set")
    return steps

