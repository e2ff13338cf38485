"""The settings of a run: one frozen value, checked when it is made.

Precedence, lowest first: the defaults here, a TOML file (``--config``), the flags of the command line.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from dataclasses import dataclass
from typing import Any, Literal

from pgnas import setting_types
from pgnas.amounts import Amount, Budget, parse_share
from pgnas.errors import ConfigError

Granularity = Literal["channel", "group", "product", "operation"]
PriorName = Literal["gibbs", "bernoulli", "paper"]
Switch = Literal["auto", "on", "off"]
Ranking = Literal["exhaustive", "halving", "elimination"]
RankBy = Literal["accuracy", "loss"]
Selections = Literal["auto", "on", "measured", "off"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Baseline = Literal["full", "uniform"]
ScheduleName = Literal["cosine", "multistep", "sgdr"]
OptimizerName = Literal["sgd", "adamw"]
PEAK_LR: dict[OptimizerName, float] = {"sgd": 0.1, "adamw": 0.001}
"""The learning rate, unless one is given; what else has one of its own has it in proportion."""
WEIGHT_DECAY: dict[OptimizerName, float] = {"sgd": 5e-4, "adamw": 0.05}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run does.

    ``None`` and ``"auto"`` mean "chosen from the model, the data and the machine"; the choice is recorded
    in the run folder.

    Attributes:
        model: ``name``, ``name:key=value,...``, ``torchvision:NAME``, ``timm:NAME`` or ``package.module:factory``.
        data: A name (``pgnas list data``), a folder of images, a ``.npz`` file, or ``kind:PATH:option=value,...``.
        out: The run folder; made if absent, resumed if it holds the same run.
        weights: A ``.safetensors`` file of starting weights for the full network.
        epochs: Epochs in all, supernet and found network together; ``None``: 20, more for small data sets.
        batch_size: Images a step, over all processes together.
        optimizer: Of the weights: ``sgd`` with Nesterov momentum 0.9, or ``adamw``, as is usual for transformers.
        lr: Peak learning rate of the weights; ``None``: 0.1, with ``adamw`` 0.001.
        schedule: The learning rate over the run: ``cosine``; ``multistep``: a tenth from every milestone on; ``sgdr``:
            cosines that restart.
        warmup: Epochs of linear warm-up; ``None``: a twentieth of a ``cosine`` run, else 0.
        lr_floor: Learning rate at the end of a cosine.
        milestones: Epochs after which ``multistep`` divides the learning rate by 10; need not be whole.
        restart_epochs: Epochs of the first cosine of ``sgdr``; need not be whole.
        restart_growth: Each later cosine of ``sgdr`` is this many times as long.
        weight_decay: L2 decay of the weights, with ``adamw`` decoupled from the gradient; ``None``: 0 with the paper
            prior (its KL replaces it), else 5e-4, with ``adamw`` 0.05.
        image_size: Side in pixels to which images are resized; ``None``: as they are, 224 for a folder of mixed sizes.
        augment: Random crop, flip and cutout of the training images; ``auto``: by data set.
        cutout: Side in pixels of the square hole in training images; ``None``: what ``augment`` says.
        granularity: One logit a channel, one a group (the paper's), a channel's and its group's together, or gates on
            the operations of choices alone.
        streams: Gate whole streams as well (the values of a residual stage), beside each reader's own gate; ``auto``:
            with channel logits and the ``gibbs`` prior.
        exclude: Shell-style patterns of layers that stay ungated, such as ``"classifier"``.
        gate_inputs: Also gate the layers that read the images themselves.
        channels_per_gate: Neighbouring input channels that are kept or dropped together, such as 8, so that layers read
            multiples of it; see :func:`pgnas.supernet`.
        auxiliary_weight: Weight of the loss of a network's auxiliary heads in training.
        prior: ``None``: ``gibbs`` with a cap, ``paper`` without one.
        length_scale_sq: l^2 of the paper prior (Eq. 15).
        data_size: N of the ELBO; ``None``: the training images, ten times as many if they are augmented.
        prior_drop: u of the Bernoulli prior, in (0, 1).
        max_macs: Cap on the multiply-adds of the found network.
        max_params: Cap on its parameters.
        max_latency: Cap on its latency on this device: a share of the full network's (``"60%"``) or a time (``"8ms"``).
        latency_batch: Images a batch whose latency is capped.
        decide_at: Point of the run, as a share of the epochs, at which an architecture is drawn and frozen;
            ``"never"``: at the end, as in the paper; ``None``: ``"25%"`` with a cap, else ``"never"``.
        budget: Compute of the run instead of ``epochs``: so many epochs of the full network (``"12"``), counted in
            multiply-adds x examples, or a time (``"30min"``); what smaller networks save is spent on more epochs.
        shed: Channels of gates that have decided to close leave the supernet while it trains; ``auto``: with
            ``budget``.
        candidates: C, the number of architectures drawn and ranked.
        ranking: Score every candidate on every held-out image (``exhaustive``), or race them: ``halving`` spends a
            fixed share of these passes, ``elimination`` what an error probability takes.
        rank_by: What an exhaustive ranking goes by, the held-out ``accuracy``, as in the paper, or the held-out
            ``loss``, which chance moves less.
        ranking_budget: Share of the exhaustive passes over ``candidates`` that ``halving`` spends, in (0, 1].
        ranking_error: Probability with which ``elimination`` may choose another than the best, in (0, 1).
        finalists: How many of the best candidates are told apart by training each for a short while, then half of them
            for twice as long, and so on; 0: none.
        finalist_epochs: Epochs of each in the first round.
        avoid_selections: Let a layer that keeps nearly all channels of a value with several readers read all of it:
            picking channels costs more than it saves. ``on``: from a fixed share upwards; ``measured``: where that is
            so as timed on this device; ``auto``, with a cap and a logit a channel: ``measured`` with ``round_to`` or
            ``max_latency``, else ``on``.
        round_to: Numbers of channels are brought up to multiples of this, for hardware that likes them so.
        device_costs: The folder of a run whose timings of this network are used, so that a rerun decides alike.
        recalibrate: Re-estimate BatchNorm statistics of each candidate; ``auto``: where validation says it helps.
        average_weights: Candidates have the average of the supernet's weights over the last steps; ``auto``: if the
            decision comes before the end, when the learning rate is still high, unless statistics are not re-estimated.
        temperature: tau of the relaxation (Eq. 16); ``None``: 0.2 with the paper prior, else 0.5.
        initial_drop: Initial drop probability; ``None``: 0.1 with the paper prior, else 0.02.
        fixed_drop: A drop probability that every gate keeps: nothing is learned about the architecture, candidates are
            drawn at random with it; 0: the full network, trained plainly; ``None``: it is learned.
        logit_lr: Learning rate of the gates' logits (Adam).
        weights_first: Epochs at the start in which weights learn alone; ``None``: a quarter of the epochs to the
            decision where operations are chosen, else none.
        baseline: Networks trained beside the found one at the same total compute.
        seed: Seed of weights, noise, order and candidates.
        data_seed: Seed of the splits alone.
        device: Where to compute.
        precision: Number format of the forward pass.
        compile: ``torch.compile``; ``auto``: when the planned work repays its warm-up.
        accumulate: Parts in which each process works through its share of a batch, one after another: less memory.
        sync_batch_norm: BatchNorm sees the batches of all processes as one in training; needs CUDA.
        checkpoint_minutes: Minutes after which a checkpoint is made amid an epoch; one is made after each anyway.
    """

    model: str
    data: str
    out: str
    weights: str | None = None
    epochs: int | None = None
    batch_size: int = 128
    optimizer: OptimizerName = "sgd"
    lr: float | None = None
    schedule: ScheduleName = "cosine"
    warmup: float | None = None
    lr_floor: float = 0.0
    milestones: tuple[float, ...] = ()
    restart_epochs: float = 10.0
    restart_growth: float = 2.0
    weight_decay: float | None = None
    image_size: int | None = None
    augment: Switch = "auto"
    cutout: int | None = None
    granularity: Granularity = "channel"
    streams: Switch = "auto"
    exclude: tuple[str, ...] = ()
    gate_inputs: bool = False
    channels_per_gate: int = 1
    auxiliary_weight: float = 0.4
    prior: PriorName | None = None
    length_scale_sq: float = 50.0
    data_size: float | None = None
    prior_drop: float = 0.5
    max_macs: str | None = None
    max_params: str | None = None
    max_latency: str | None = None
    latency_batch: int = 1
    decide_at: str | None = None
    budget: str | None = None
    shed: Switch = "auto"
    candidates: int = 64
    ranking: Ranking = "exhaustive"
    rank_by: RankBy = "accuracy"
    ranking_budget: float = 0.05
    ranking_error: float = 0.05
    finalists: int = 0
    finalist_epochs: int = 1
    avoid_selections: Selections = "auto"
    round_to: int = 1
    device_costs: str | None = None
    recalibrate: Switch = "auto"
    average_weights: Switch = "auto"
    temperature: float | None = None
    initial_drop: float | None = None
    fixed_drop: float | None = None
    logit_lr: float = 0.05
    weights_first: float | None = None
    baseline: tuple[Baseline, ...] = ()
    seed: int = 0
    data_seed: int = 0
    device: Device = "auto"
    precision: Precision = "auto"
    compile: Switch = "auto"
    accumulate: int = 1
    sync_batch_norm: bool = False
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        for name, hint in field_hints().items():
            object.__setattr__(self, name, _normal(name, getattr(self, name), hint))
        _check_texts(self)
        _check_numbers(self)
        _check_schedule(self)
        if self.max_macs is not None:
            Amount.parse(self.max_macs, subject="--max-macs")
        if self.max_params is not None:
            Amount.parse(self.max_params, subject="--max-params")
        if self.max_latency is not None:
            Amount.parse_latency(self.max_latency, subject="--max-latency")
        if self.prior == "gibbs" and not self.has_cap:
            raise ConfigError(
                "--prior gibbs", "needs a cost to weigh", value="no cap", remedy="add --max-macs 40% or --max-params 2M"
            )
        if self.budget is not None:
            Budget.parse(self.budget, subject="--budget")
            if self.epochs is not None:
                raise ConfigError("--budget", "takes the place of --epochs", value="both", remedy="give one of them")
        if self.fixed_drop is not None and self.has_cap:
            raise ConfigError("--fixed-drop", "decides the size alone", value="a cap beside it", remedy="drop the cap")
        if self.fixed_drop is not None and self.shed == "on":
            raise ConfigError("--shed on", "needs gates that learn", value="--fixed-drop beside it", remedy="drop one")
        if self.rank_by == "loss" and self.ranking != "exhaustive":
            rule, value = "races go by accuracy", f"loss, with --ranking {self.ranking}"
            raise ConfigError("--rank-by", rule, value=value, remedy="leave out either")
        if self.finalists == 1 or self.finalists > self.candidates:
            rule = "must be 0, or at least 2 and at most --candidates"
            raise ConfigError("--finalists", rule, value=self.finalists, remedy="choose 0, or change --candidates")
        if self.streams == "on" and self.granularity not in ("channel", "product"):
            rule, value = "need a logit a channel", f"on, with granularity {self.granularity}"
            raise ConfigError("--streams", rule, value=value, remedy="leave out either")
        if self.channels_per_gate > 1 and self.granularity == "operation":
            rule, value = "needs gates on channels", f"{self.channels_per_gate}, with granularity operation"
            raise ConfigError("--channels-per-gate", rule, value=value, remedy="leave out either")
        if self.channels_per_gate % self.round_to and self.round_to % self.channels_per_gate:
            rule, value = (
                "must be a multiple of --channels-per-gate, or divide it",
                (f"{self.round_to}, with --channels-per-gate {self.channels_per_gate}"),
            )
            raise ConfigError("--round-to", rule, value=value, remedy="change either")
        self.decision_share()

    def given(self) -> dict[str, Any]:
        """The settings that were given or have a default, by name; those that are ``None`` are left out."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value is not None}

    @property
    def peak_lr(self) -> float:
        """The learning rate in force."""
        return PEAK_LR[self.optimizer] if self.lr is None else self.lr

    @property
    def has_cap(self) -> bool:
        """Whether the found network's cost is capped."""
        return any(cap is not None for cap in (self.max_macs, self.max_params, self.max_latency))

    @property
    def sheds(self) -> bool:
        """Whether the supernet sheds closed gates, ``auto`` resolved."""
        learns = self.fixed_drop is None
        return self.shed == "on" or (self.shed == "auto" and self.budget is not None and learns)

    @property
    def averages_weights(self) -> bool:
        """Whether the supernet's weights are averaged over the last steps, ``auto`` resolved."""
        decides = self.decision_share() is not None and self.recalibrate != "off"
        return self.average_weights == "on" or (self.average_weights == "auto" and decides)

    @property
    def selections(self) -> Selections:
        """Where layers read all of a shared value, ``auto`` resolved."""
        if self.avoid_selections != "auto":
            return self.avoid_selections
        if not self.has_cap or self.granularity != "channel":
            return "off"
        return "measured" if self.round_to > 1 or self.max_latency is not None else "on"

    @property
    def gates_streams(self) -> bool:
        """Whether whole streams have gates too, ``auto`` resolved."""
        fits = self.granularity == "channel" and self.prior_name == "gibbs" and self.fixed_drop is None
        return self.streams == "on" or (self.streams == "auto" and fits)

    @property
    def prior_name(self) -> PriorName:
        """The prior in force."""
        return self.prior or ("gibbs" if self.has_cap else "paper")

    def decision_share(self) -> float | None:
        """The share of the epochs after which an architecture is frozen, in (0, 1); ``None`` for never.

        Raises:
            ConfigError: ``decide_at`` is neither ``"never"`` nor a share strictly between 0 % and 100 %.
        """
        text = self.decide_at or ("25%" if self.has_cap else "never")
        if text == "never":
            return None
        return parse_share(text, subject="--decide-at", otherwise="never")


_BOUNDS: dict[str, tuple[float, float, bool]] = {  # field: (low, high, low is allowed)
    "epochs": (1, 1_000_000, True),
    "batch_size": (2, 1_000_000, True),
    "lr": (0, 1_000, False),
    "warmup": (0, 1_000_000, True),
    "lr_floor": (0, 1_000, True),
    "restart_epochs": (0, 1_000_000, False),
    "restart_growth": (1, 1_000, True),
    "weight_decay": (0, 1_000, True),
    "image_size": (1, 8_192, True),
    "cutout": (0, 8_192, True),
    "channels_per_gate": (1, 1_024, True),
    "auxiliary_weight": (0, 1_000, True),
    "data_size": (0, 1e18, False),
    "length_scale_sq": (0, 1e12, False),
    "prior_drop": (0, 1, False),
    "latency_batch": (1, 1_000_000, True),
    "candidates": (1, 10_000_000, True),
    "ranking_budget": (0, 1, False),
    "ranking_error": (0, 1, False),
    "finalists": (0, 1_024, True),
    "finalist_epochs": (1, 1_000, True),
    "round_to": (1, 1_024, True),
    "temperature": (0, 100, False),
    "initial_drop": (0, 1, False),
    "fixed_drop": (0, 1, True),
    "logit_lr": (0, 100, False),
    "weights_first": (0, 1_000_000, True),
    "accumulate": (1, 1_000_000, True),
    "checkpoint_minutes": (0, 1e6, True),
    "seed": (0, 2**32 - 1, True),
    "data_seed": (0, 2**32 - 1, True),
}
_OPEN_ABOVE = {"prior_drop", "initial_drop", "fixed_drop", "ranking_error"}


def _normal(name: str, value: object, hint: object) -> object:
    """The value as the setting's own type.

    Raises:
        ConfigError: It is of another.
    """
    found = setting_types.lenient(value, hint)
    if found is not None or (value is None and type(None) in typing.get_args(hint)):
        return found
    flag, rule = "--" + name.replace("_", "-"), f"must be {setting_types.described(hint)}"
    raise ConfigError(flag, rule, value=repr(value), remedy="give such a value")


def _check_texts(config: RunConfig) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and ("\0" in text or not _is_unicode(text)):
                flag = "--" + field.name.replace("_", "-")
                rule = "must be Unicode text without zero bytes"  # what TOML and JSON can keep and paths can hold
                raise ConfigError(flag, rule, value=ascii(text[:80]), remedy="rename what it names")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of a command line that are no UTF-8
        return False
    return True


def _check_numbers(config: RunConfig) -> None:
    for field, (low, high, closed) in _BOUNDS.items():
        value = getattr(config, field)
        if value is None:
            continue
        flag = "--" + field.replace("_", "-")
        good = low <= value <= high if closed else low < value <= high  # NaN fails both
        if field in _OPEN_ABOVE:
            good = good and value < high
        if not good:
            left, right = "[" if closed else "(", ")" if field in _OPEN_ABOVE else "]"
            raise ConfigError(
                flag, f"must lie in {left}{low:g}, {high:g}{right}", value=value, remedy="choose a value inside"
            )


def _check_schedule(config: RunConfig) -> None:
    if config.lr_floor > config.peak_lr:
        rule = f"must be at most --lr {config.peak_lr:g}"
        raise ConfigError("--lr-floor", rule, value=config.lr_floor, remedy="lower it")
    milestones = config.milestones
    if bool(milestones) != (config.schedule == "multistep"):
        value = f"--schedule {config.schedule} with {'some' if milestones else 'none'}"
        remedy = "drop them" if milestones else "add for example --milestones 10,15"
        raise ConfigError("--milestones", "belong to --schedule multistep", value=value, remedy=remedy)
    if any(not low < high for low, high in zip((0.0, *milestones), milestones, strict=False)):
        shown = ",".join(f"{milestone:g}" for milestone in milestones)
        raise ConfigError("--milestones", "must grow, from above 0", value=shown, remedy="write for example 10,15")


@functools.cache
def field_hints() -> dict[str, object]:
    """The type hint of each setting."""
    return {name: hint for name, hint in typing.get_type_hints(RunConfig).items() if name in field_names()}


def field_names() -> tuple[str, ...]:
    """The names of all settings, in the order in which they are declared."""
    return tuple(field.name for field in dataclasses.fields(RunConfig))
