"""Train several sub-networks of one supernet together: they share weights, and each has its own normalisation.

Every step one of them learns from one batch, the small ones in more steps than the large ones, so that each has about
as much of the compute as the others. What it learns is in all that keep the same channels: networks for several costs
are nearly nested, so that the small ones learn in the steps of the large ones and the other way round. Statistics and
scales of BatchNorm differ from network to network (slimmable networks; Yu et al., ICLR 2019), the rest is one set of
weights, as in a once-for-all network (Cai et al., ICLR 2020).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pgnas.errors import RunFolderError
from pgnas.nn import SmallNetwork
from pgnas.run_folder import RunFolder, SharedFolder
from pgnas.seeds import derive_seed
from pgnas.stages.context import Context
from pgnas.stages.engine import Engine
from pgnas.stages.epochs import run_epochs
from pgnas.stages.front_settings import FrontSettings
from pgnas.stages.moments import Moments, each_moment, moments_of, no_moments, set_moments, to_tensors
from pgnas.stages.phases import NetworkPhase
from pgnas.stages.schedule import CosineSchedule, Schedule
from pgnas.stages.searching import JOINT_NAME, extracted_network, spent_finding
from pgnas.stages.shedding import affordable
from pgnas.stages.store import FolderStore
from pgnas.stages.training import Phase

STAGE = "joint"
UNDER_WAY = "joint.front"
"""In the run's ledger: the command of the front whose networks were trained together last, and whether that ended."""
MOST_TURNS = 4
"""Steps of the smallest network for one of the largest, at most: what is shared must be the large ones' as well."""


@dataclass(frozen=True)
class Member:
    """One of the networks.

    Attributes:
        name: Told apart from the others by it.
        phase: How it is trained.
        small: Which slices of the supernet's tensors it keeps.
        shared: Its parameters that are slices of shared ones, by their name in the supernet.
        own: The others by name: those of its normalisation, and what only an extracted network has.
        turns: How many steps it has in a round of all.
    """

    name: str
    phase: NetworkPhase
    small: SmallNetwork
    shared: Mapping[str, nn.Parameter]
    own: Mapping[str, nn.Parameter]
    turns: int = 1

    @classmethod
    def of(
        cls, name: str, phase: NetworkPhase, small: SmallNetwork, weights: Mapping[str, Tensor], *, turns: int = 1
    ) -> Member:
        """The member whose network shares ``weights``, but for what belongs to a normalisation."""
        network = small.module if small.headed is None else small.headed
        norms = [m for m in network.modules() if isinstance(m, _NormBase)]
        apart = {id(p) for norm in norms for p in norm.parameters(recurse=False)}
        named = dict(network.named_parameters())
        shared = {n: p for n, p in named.items() if n in weights and id(p) not in apart}
        return cls(name, phase, small, shared, {n: p for n, p in named.items() if n not in shared}, turns)

    @torch.no_grad()
    def load_(self, weights: Mapping[str, Tensor], moments: Moments) -> None:
        """Take its slices of the shared weights and of their optimiser's moments."""
        for name, parameter in self.shared.items():
            parameter.copy_(self.small.take(name, weights[name]))
        of_shared = {slot: {name: values[name] for name in self.shared} for slot, values in moments.items()}
        set_moments(self.phase.weights, self.shared, each_moment(of_shared, self.small.take))

    def put_(self, weights: Mapping[str, Tensor], moments: Moments) -> None:
        """Write its slices back; the inverse of :meth:`load_`."""
        for name, parameter in self.shared.items():
            self.small.put_(name, weights[name], parameter.detach())
        for slot, values in moments_of(self.phase.weights, self.shared).items():
            for name, value in values.items():
                if value.ndim == 0:  # a number of steps
                    moments[slot][name].copy_(value)
                else:
                    self.small.put_(name, moments[slot][name], value)

    def whole_moments(self, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Its optimiser's moments in tensors shaped like the supernet's; 0 where it keeps nothing."""

        def whole(name: str, value: Tensor) -> Tensor:
            found = torch.zeros_like(weights[name])
            self.small.put_(name, found, value)
            return found

        known = {name: p for name, p in {**self.shared, **self.own}.items() if name in weights}
        return each_moment(moments_of(self.phase.weights, known), whole)


class JointPhase(Phase):
    """Train several networks that share weights, one of them a step.

    Args:
        members: The networks, on the engine's device.
        weights: The supernet's parameters by name, which they share; they are changed.
        engine: Where.
        schedule: Learning rate.
        begin: Steps of the schedule that are behind.
        seed: Of the order in which the members have their turns.
        name: Names its checkpoints and rows.

    Attributes:
        shared: The weights.
        moments: Their optimiser's.
    """

    def __init__(
        self,
        members: Sequence[Member],
        weights: Mapping[str, Tensor],
        *,
        engine: Engine,
        schedule: Schedule,
        seed: int,
        begin: float = 0.0,
        name: str = STAGE,
    ) -> None:
        self.name, self.engine, self.schedule = name, engine, schedule
        self.members, self.shared = tuple(members), dict(weights)
        self._seed, self._begin = seed, begin
        self._round = [member for member in self.members for _ in range(member.turns)]
        self.moments = no_moments(self.members[0].phase.weights, self.shared)
        self.network = nn.ModuleList(member.phase.network for member in members)
        self._turn(0)

    def member(self, step: int) -> Member:
        """Whose turn a step is: in a round all have theirs, in a new order each time."""
        count = len(self._round)
        generator = torch.Generator().manual_seed(derive_seed(self._seed, STAGE, step // count))
        return self._round[int(torch.randperm(count, generator=generator)[step % count])]

    def _turn(self, step: int) -> None:
        self._now = self.member(step)
        self.weights = self._now.phase.weights

    def place(self, step: int) -> float:
        """As many steps on as have been done."""
        return self._begin + step

    def prepare_step(self, step: int) -> None:
        """Hand the weights to the network whose turn it is."""
        self._turn(step)
        self._now.load_(self.shared, self.moments)
        super().prepare_step(step)

    def loss(self, inputs: tuple[Tensor, ...], targets: Any, step: int, *, noise: Tensor | None = None) -> Tensor:
        """The loss of the network whose turn it is."""
        return self._now.phase.loss(inputs, targets, step)

    def finish_step(self, step: int) -> None:
        """Take the weights back."""
        self._now.put_(self.shared, self.moments)

    def hand_out(self) -> None:
        """Give every network its slices of the shared weights, as at the end."""
        for member in self.members:
            member.load_(self.shared, self.moments)

    def state(self) -> dict[str, Any]:
        """The shared weights, and of each member what is its own."""
        members = {member.name: member.phase.state() for member in self.members}
        shared = {"shared": dict(self.shared), "moments": dict(self.moments)}
        return shared | {"members": members} | self.scaler_state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        saved: Moments = {"weights": state["shared"], **state["moments"]}
        for slot, mine in {"weights": self.shared, **self.moments}.items():
            for name, tensor in mine.items():
                tensor.copy_(saved[slot][name])
        for member in self.members:
            member.phase.load_state(state["members"][member.name])
        self.load_scaler(state)


@contextmanager
def opened(run: Context, path: Path, model: nn.Module | None) -> Iterator[Context]:
    """A point of a run, open for writing, with the run's data."""
    with SharedFolder.share(run.processes, lambda: RunFolder.open(path)) as folder:
        yield Context(folder, run.progress, model=model, data=run.data, processes=run.processes)


def require_same_company(run: Context, paths: Mapping[str, Path]) -> None:
    """Check that those of the points that were trained together were so with all these, and no others.

    Args:
        run: The run.
        paths: Caps to the points' folders, which need not be there yet.

    Raises:
        RunFolderError: One was trained with others.
    """
    for path in paths.values():
        if not run.processes.from_first((path / "config.toml").exists):
            continue
        with opened(run, path, None) as point:
            facts: Mapping[str, Any] = point.folder.stage_facts(STAGE)
        if facts and facts["caps"] != list(paths):
            value, remedy = ", ".join(facts["caps"]), f"give the same caps, or remove {path.parent}"
            raise RunFolderError(str(path), "was trained together with other caps", value=value, remedy=remedy)


def train_together(
    run: Context, paths: Mapping[str, Path], settings: FrontSettings, *, model: nn.Module | None
) -> None:
    """Train the networks of several points together, unless that is done; each point's next stage begins with its own.

    It may cost what all of them have left. What is left of that, less than a pass, may train some of them alone.

    Args:
        run: The run whose search they share.
        paths: Caps to the points' folders, from the largest to the smallest; all are extracted.
        settings: Of the front.
        model: The network, if the run was handed one as an object.
    """
    with ExitStack() as stack:
        points = {cap: stack.enter_context(opened(run, path, model)) for cap, path in paths.items()}
        if all(point.folder.stage_done(STAGE) for point in points.values()):
            return
        left = {cap: _left(point, settings) for cap, point in points.items()}
        costs = [point.recipe.cost(point.found) for point in points.values()]
        turns = turns_of(costs)
        mean = sum(n * cost for n, cost in zip(turns, costs, strict=True)) / sum(turns)  # of a pass over the data
        stop = affordable(sum(left.values()), mean)
        if stop == 0:
            run.progress.note("front: nothing is left of --epochs to train the networks together")
            return
        run.progress.note(f"front: {len(points)} networks are trained together for {stop} epochs")
        run.progress.stage(STAGE)
        front = settings.command(run.folder.path)
        run.folder.mark_done(UNDER_WAY, 0.0, command=front, finished=False)
        phase = _joint_phase(run, points, settings, stop, turns)
        store = FolderStore(run.folder, phase.name)
        try:
            batches, seed = run.train_batches(), run.config.seed
            run_epochs(phase, batches, epochs=range(stop), seed=seed, store=store, progress=run.progress)
        finally:
            store.close()
        phase.hand_out()
        paid = stop * mean / sum(left.values())
        seconds = run.folder.stage_seconds(phase.name) / len(points)
        for member in phase.members:
            folder = points[member.name].folder
            folder.save_tensors("momentum.safetensors", to_tensors(member.whole_moments(phase.shared)))
            folder.save_tensors(JOINT_NAME, member.small.module.state_dict())
            passes = stop * member.turns / sum(turns)
            facts = {"caps": list(points), "epochs": stop, "passes": passes, "spent": paid * left[member.name]}
            folder.mark_done(STAGE, seconds, **facts)
        run.folder.mark_done(UNDER_WAY, 0.0, command=front, finished=True)
        run.folder.delete_checkpoints(phase.name)


def turns_of(costs: Sequence[float]) -> list[int]:
    """How many steps networks of these costs have in a round, so that each has about as much compute as the others."""
    most = max(costs)
    return [min(MOST_TURNS, round(most / cost)) if cost > 0 else MOST_TURNS for cost in costs]


def _left(point: Context, settings: FrontSettings) -> float:
    """Of a point's epochs those in which it may be trained together with others, in epochs of the full network."""
    if point.config.budget is None:  # re-targeted: its search is the run's
        return settings.epochs
    return max(0.0, settings.epochs - spent_finding(point))


def _joint_phase(
    run: Context, points: Mapping[str, Context], settings: FrontSettings, epochs: int, turns: Sequence[int]
) -> JointPhase:
    """The phase, whose steps are the rest of the points' schedule after their search."""
    small = {cap: extracted_network(point) for cap, point in points.items()}
    smallest = points[list(points)[-1]]  # searched on last: its weights are the newest
    device = run.engine.device
    weights = {n: p.detach().to(device, copy=True) for n, p in smallest.posterior.body.named_parameters()}
    digests = "".join(point.architecture.digest for point in points.values())
    name = f"{STAGE}-{hashlib.sha256(digests.encode()).hexdigest()[:12]}"
    work = [n * run.recipe.planned_macs(point.found, epochs) for n, point in zip(turns, points.values(), strict=True)]
    planned = min(work) / sum(turns)
    compiled = run.compile_choice(name, planned)  # each by itself: the least of them must repay its warm-up
    members = [
        Member.of(cap, run.recipe.found_phase(network, {}, compiled=compiled, name=cap), network, weights, turns=n)
        for n, (cap, network) in zip(turns, small.items(), strict=True)
    ]
    steps = round(epochs * run.steps_an_epoch / (1 - settings.search_share))
    return JointPhase(
        members, weights, engine=run.engine, schedule=CosineSchedule(settings.first_lr(run.config.optimizer), steps, 0),
        begin=settings.search_share * steps, seed=run.config.seed, name=name,
    )  # fmt: skip
