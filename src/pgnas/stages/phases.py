"""The two phases of a run: learning the posterior, and training one network without noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pgnas.bayes import CapController, Prior, elbo, ramp
from pgnas.config import OptimizerName
from pgnas.errors import DivergedError
from pgnas.nn import ShedSupernet, Supernet
from pgnas.nn.cost import CostName
from pgnas.stages.compiled import CompiledForward
from pgnas.stages.engine import Engine
from pgnas.stages.moments import Moments, each_moment, make_optimizer, moments_of, renamed, set_moments
from pgnas.stages.schedule import Schedule
from pgnas.stages.shedding import Pace, Shedder, Spending
from pgnas.stages.training import DIVERGED_REMEDY, Loss, Phase, recalibrate

LOGIT_BOUND = 8.0
"""Logits are kept within this bound: their sigmoid still has a gradient there, so that a gate can come back."""
DECIDED = 0.05
"""A gate is decided if its keep probability is within this of 0 or 1."""


DUAL_STEP, DAMPING, TUNED_TARGET = 0.02, 50.0, 0.4
"""Of the caps' controller: small dual steps and strong damping, so that the cost follows the falling target closely.

Tuned at a cap of 40 %. While a lower target is in force both grow with 1/target^3: with 1/target^2 the same excess
relative to the target weighs the same, and what a share of what is left is worth grows as less is left.
"""


@dataclass(frozen=True)
class PosteriorSettings:
    """How the posterior is learned.

    Attributes:
        prior: The prior over the gates.
        data_size: N of the ELBO.
        caps: Cost to its cap as a share of the full network's.
        decision_step: The place in the schedule by which the caps must be met.
        hold: Share of the steps to the decision in which the caps do not press yet.
        reach: Share of the steps to the decision at which the caps are in full force.
        logit_lr: Learning rate of the logits; ``None``: they stay as they are.
        weights_only: Steps at the start in which the weights learn and the logits do not.
        weight_decay: L2 decay of the weights.
        optimizer: Of the weights.
        momentum: Their Nesterov momentum, or first beta.
        averaging: Steps over which the weights are averaged, exponentially; the average is what the phase ends with.
            At most 1: the weights of the last step are.
        begun: Cost to where its cap begins to fall, as a share of the full network's; 1 where it is not given.
    """

    prior: Prior
    data_size: float
    caps: Mapping[CostName, float]
    decision_step: float
    hold: float = 0.1
    reach: float = 0.7
    logit_lr: float | None = 0.05
    weights_only: int = 0
    optimizer: OptimizerName = "sgd"
    weight_decay: float = 5e-4
    momentum: float = 0.9
    averaging: float = 0.0
    begun: Mapping[CostName, float] = field(default_factory=dict)

    def target(self, cap: float, step: float, begun: float = 1.0) -> float:
        """The cap in force at a place in the schedule: lowered from ``begun``, geometrically."""
        steps = max(1, self.decision_step - self.weights_only)
        share = max(0.0, step - self.weights_only) / steps
        return ramp((share - self.hold) / (self.reach - self.hold), max(begun, cap), cap)


class PosteriorPhase(Phase):
    """Minimise the ELBO over weights and logits together, under the caps.

    Args:
        supernet: The supernet, on the engine's device; it is trained.
        settings: How.
        engine: Where.
        schedule: Learning rate of the weights.
        loss: Mean negative log-likelihood of a batch.
        compiled: Whether to compile the forward pass.
        shedder: Says when closed gates leave the supernet; None: never.
        spending: What the phase may cost; None: it takes the epochs planned.

    Attributes:
        whole: The supernet as handed in; :meth:`settle` brings it up to date if gates have left.
        supernet: What is trained: ``whole``, or what is left of it.
        average: Of its weights, by name; empty without averaging.
    """

    name = "search"

    def __init__(
        self,
        supernet: Supernet,
        settings: PosteriorSettings,
        *,
        engine: Engine,
        schedule: Schedule,
        loss: Loss,
        compiled: bool = False,
        shedder: Shedder | None = None,
        spending: Spending | None = None,
    ) -> None:
        self.whole, self.engine, self.schedule, self.settings = supernet, engine, schedule, settings
        self.shedder, self.spending = shedder, spending
        self._loss, self._compiled = loss, compiled
        self._adopt(supernet, {}, {})
        self.logits: dict[str, torch.optim.Optimizer] = {}
        if settings.logit_lr is not None:
            adam = torch.optim.Adam(supernet.gates.parameters(), lr=settings.logit_lr)
            self.logits["logits"] = adam
        self.controllers = dict.fromkeys(settings.caps, stiffened(CapController()))
        self._costs: dict[CostName, Tensor] = {}

    def _adopt(self, supernet: Supernet | ShedSupernet, moments: Moments, average: dict[str, Tensor]) -> None:
        """Train this from now on, with these moments and this average of its weights (none: they begin here)."""
        self.network = self.supernet = supernet
        self._forward: Callable[..., Any] = CompiledForward(supernet) if self._compiled else supernet
        wanted = self.settings
        self.weights = make_optimizer(
            wanted.optimizer, supernet.weight_parameters(), self.schedule, wanted.weight_decay, wanted.momentum
        )
        set_moments(self.weights, dict(supernet.body.named_parameters()), moments)
        self.average = average or self._average_begun()

    def _average_begun(self) -> dict[str, Tensor]:
        """The average that begins with the weights as they are; none without averaging."""
        if self.settings.averaging <= 1:
            return {}
        return {name: value.detach().clone() for name, value in self.supernet.body.named_parameters()}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Of the weights and, unless these stay as they are, of the logits."""
        return {"weights": self.weights, **self.logits}

    def noise(self, examples: int) -> Tensor:
        """Uniform noise for each example and gate, (examples, U): an image's depends on its place in the whole batch.

        So it differs from process to process, and does not depend on how many there are.
        """
        rank, size = self.engine.processes.rank, self.engine.processes.world_size
        drawn = torch.rand(examples * size, self.supernet.gates.units, device=self.engine.device)
        return drawn[rank::size]

    def loss(self, inputs: tuple[Tensor, ...], targets: Any, step: int, *, noise: Tensor | None = None) -> Tensor:
        """-E[log p(y | x, m * z)] + KL / N (Eq. 10, 14), plus the caps' augmented Lagrangian."""
        noise = self.noise(len(inputs[0])) if noise is None else noise
        with self.engine.autocast():
            nll = self._loss(self._forward(*inputs, noise=noise), targets)
        prior = self.settings.prior
        # The caps' terms below are lambda * N * E_q[cost]: the Gibbs prior with the multiplier that meets the cap.
        context = self.supernet.gates.kl_context(
            self.settings.data_size,
            weight_sq=self.supernet.weight_sq() if prior.needs_weights else None,
            expected_cost=torch.zeros((), device=self.engine.device) if prior.needs_cost else None,
        )
        total = elbo(nll, prior.kl(context), self.settings.data_size).loss
        self._costs = {kind: self.supernet.expected_cost(kind) for kind in self.settings.caps}
        for kind, cost in self._costs.items():
            total = total + self.controllers[kind].penalty(cost)
        return total

    def update(self, loss: Tensor, step: int) -> Tensor:
        """As of every phase; at the start without the logits, which then have no gradient and stay."""
        if step < self.settings.weights_only:
            for parameter in self.supernet.gates.parameters():
                parameter.grad = None
        return super().update(loss, step)

    def finish_step(self, step: int) -> None:
        """Average the weights; clamp the logits and take a dual step, once they learn."""
        if self.average:
            for name, value in self.supernet.body.named_parameters():
                self.average[name].lerp_(value.detach(), 1 / self.settings.averaging)
        if step < self.settings.weights_only:
            return
        if self.logits:
            self.supernet.gates.clamp_(LOGIT_BOUND)
        for kind, cap in self.settings.caps.items():
            target = self.settings.target(cap, self.place(step + 1), self.settings.begun.get(kind, 1.0))
            cost = float(self._costs[kind].detach())
            if not math.isfinite(cost):
                raise DivergedError(
                    f"the expected cost of '{self.name}'", "must stay finite", value=cost, remedy=DIVERGED_REMEDY
                )
            updated = self.controllers[kind].update(cost, target)
            self.controllers[kind] = stiffened(updated)

    def place(self, step: int) -> float:
        """With a budget the schedule follows what is spent of it."""
        return step if self.spending is None else self.spending.place(step)

    def stop(self, planned: int) -> int:
        """With a budget the phase ends when it is spent."""
        return planned if self.spending is None else self.spending.stop

    def finish_epoch(self, epoch: int) -> None:
        """Count what the epoch cost; let gates leave if it is time, and plan what remains."""
        if self.spending is None:
            return
        self.spending.after_epoch(self.spending.full if self.shedder is None else self.shedder.macs)
        if self.shedder is not None:
            self._shed(self.shedder.after_epoch(self.spending.stop - epoch), epoch)

    def shed_closed(self) -> None:
        """Before the first step: gates that have decided to close leave, and the budget is planned without them."""
        if self.shedder is not None:
            self._shed(self.shedder.closed_at_start(), 0)

    def _shed(self, closed: Tensor | None, epoch: int) -> None:
        """Go on after ``epoch`` without the units ``closed``, bool (U,), if there are any, and plan what remains."""
        if closed is None:
            return
        assert self.shedder is not None
        assert self.spending is not None
        moments, average = self.moments(), self._of_whole(self.average)
        self._put_back()
        self._adopt_left(closed, moments, average)
        self.spending.plan(epoch, self.shedder.macs)

    def _adopt_left(self, closed: Tensor, moments: Moments, average: Mapping[str, Tensor]) -> None:
        self.whole.gates.close_(closed)
        left = ShedSupernet(self.whole)
        self.engine.place(left)
        kept = renamed(moments, {name: name for name, _ in left.body.named_parameters()})
        self._adopt(left, each_moment(kept, lambda name, value: left.take({name: value})[name]), left.take(average))

    def _put_back(self) -> None:
        if isinstance(self.supernet, ShedSupernet):
            self.supernet.put_back()

    def settle(self, calibration: Callable[[], Iterable[Any]] | None = None) -> bool:
        """The end: ``whole`` has what was learned (of weights their average, if asked for); gates that left are closed.

        Args:
            calibration: Gives training batches on which BatchNorm is re-estimated if weights were averaged, as its
                statistics are those of the last weights.

        Returns:
            Whether statistics were re-estimated.
        """
        with torch.no_grad():
            for name, value in self.supernet.body.named_parameters():
                value.copy_(self.average.get(name, value))
        self._put_back()
        self.whole.gates.settle_()
        if not self.average or calibration is None:
            return False
        found = recalibrate(self.whole, calibration(), engine=self.engine)
        self.engine.average_statistics(self.whole)
        return found

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        """Expected cost, its target and multiplier, the share of undecided gates, and how much each gate keeps."""
        keep = torch.sigmoid(self.whole.gates.logits())
        row: dict[str, Any] = {
            "undecided": float(((keep > DECIDED) & (keep < 1 - DECIDED)).float().mean()),
            "keep": float(keep.mean()),
            "keep_by_gate": self._keep_by_gate(keep),
        }
        if self.shedder is not None and self.spending is not None:
            row["left"] = self.shedder.macs / self.spending.full
        kinds: list[CostName] = list(self.settings.caps) or ["macs"]
        for kind in kinds:
            name = "cost" if kind == kinds[0] else f"cost_{kind}"
            row[name] = float(self.supernet.expected_cost(kind))
            if kind in self.controllers:
                row[name.replace("cost", "lambda")] = self.controllers[kind].multiplier
                row[name.replace("cost", "target")] = self.controllers[kind].target
        return row

    def _keep_by_gate(self, keep: Tensor) -> dict[str, float]:
        """Each gate's mean keep probability; of operations each one's."""
        gates = self.whole.gates
        found: dict[str, float] = {}
        for spec, part in zip(gates.specs, gates.split(keep).values(), strict=True):
            names = [f"{spec.name} {option}" for option in spec.options] or [spec.name]
            shares = part if spec.options else part.mean()[None]
            found |= {name: round(float(share), 4) for name, share in zip(names, shares, strict=True)}
        return found

    def state(self) -> dict[str, Any]:
        """Weights, their average, logits, optimisers, multipliers, and which gates left."""
        self._put_back()
        state = super().state() | {"caps": {kind: c.to_dict() for kind, c in self.controllers.items()}}
        state |= {"network": dict(self.whole.state_dict()), "average": self.average}
        for name, part in (("shedder", self.shedder), ("spending", self.spending)):
            if part is not None:
                state[name] = part.state()
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`; the gates that had left leave first."""
        self.whole.load_state_dict(state["network"])
        if self.spending is not None:
            self.spending.load_state(state["spending"])
        if self.shedder is not None:
            self.shedder.load_state(state["shedder"])
            if state["shedder"]["closed"].any():
                self._adopt_left(state["shedder"]["closed"], {}, {})
        self.average = self._average_begun()
        if state.get("average"):  # a search that was begun without begins it now
            self.average = {name: state["average"][name].to(value) for name, value in self.average.items()}
        for name, optimizer in self.optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.load_scaler(state)
        self.controllers = {kind: CapController.from_dict(c) for kind, c in state["caps"].items()}

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """The optimiser's moments of each weight; 0 where channels left."""
        found = moments_of(self.weights, dict(self.supernet.body.named_parameters()))
        return each_moment(found, lambda name, value: self._of_whole({name: value})[name])

    def _of_whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.supernet.put(tensors) if isinstance(self.supernet, ShedSupernet) else tensors


def stiffened(controller: CapController) -> CapController:
    """The controller with the dual step and damping for its target, a share of the full network's cost."""
    stiffer = max(1.0, TUNED_TARGET / controller.target) ** 3
    return replace(controller, step=stiffer * DUAL_STEP, damping=stiffer * DAMPING)


class NetworkPhase(Phase):
    """Train one network without noise.

    Args:
        network: The network, on the engine's device; it is trained.
        name: Names its checkpoints and rows.
        engine: Where.
        schedule: Learning rate, over the whole run's steps.
        loss: Mean loss of a batch.
        weight_decay: L2 decay of kernels and matrices.
        optimizer: Of the weights.
        momentum: Nesterov momentum, or AdamW's first beta.
        moments: The optimiser's to start from.
        compiled: Whether to compile the forward pass.
        pace: Where its steps lie in the schedule; None: where the run's steps do.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        engine: Engine,
        schedule: Schedule,
        loss: Loss,
        weight_decay: float,
        optimizer: OptimizerName = "sgd",
        momentum: float = 0.9,
        moments: Moments | None = None,
        compiled: bool = False,
        pace: Pace | None = None,
    ) -> None:
        self._pace = pace
        self.name, self.network, self.engine, self.schedule = name, network, engine, schedule
        self._loss = loss
        self._forward: Callable[..., Any] = CompiledForward(network) if compiled else network
        self.weights = make_optimizer(optimizer, list(network.parameters()), schedule, weight_decay, momentum)
        set_moments(self.weights, dict(network.named_parameters()), moments or {})

    def place(self, step: int) -> float:
        """Where its pace says."""
        return step if self._pace is None else self._pace.at(step)

    def loss(self, inputs: tuple[Tensor, ...], targets: Any, step: int, *, noise: Tensor | None = None) -> Tensor:
        """The plain loss."""
        with self.engine.autocast():
            return self._loss(self._forward(*inputs), targets)
