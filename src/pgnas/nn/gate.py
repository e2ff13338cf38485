"""Gates: the binary variables of the hybrid representation and the only owner of their logits.

A *gate* holds one binary variable per *unit* (an input channel of a layer, several, a head, or a whole group).
Under the posterior its units are independent Bernoulli variables; their logits are shared as the granularity says:
one a unit (``channel``), one a source of the gated value (``group``, the paper's), or both (``product``: a unit's keep
probability is its own times its group's; units are drawn independently). With ``operation`` only operations have gates.

The units of a *choice* are its options, of which exactly one is open: a categorical variable. They come last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pgnas.architecture import Architecture
from pgnas.bayes import Choices, KLContext, logit, product_logits, rsample, sample
from pgnas.errors import ModelError

Granularity = Literal["channel", "group", "product", "operation"]
_CERTAIN = 1e4
"""A logit whose sigmoid is 1 to the last bit, even with the noise of a relaxed sample at any temperature up to 100."""

CLOSED = -12_000.0
"""The logit of a gate closed for good: in float32 its sigmoid is 0, as are relaxed samples up to a tau of 100."""

_NEARLY_CLOSED = -100.0
"""Only logits of what is closed for good are below it; files of earlier versions have -200 there."""


def closed_for_good(logits: Tensor) -> Tensor:
    """Whether the gates with these logits are closed for good, bool of their shape."""
    return logits < _NEARLY_CLOSED


@dataclass(frozen=True)
class Group:
    """Units ``start`` to ``stop`` - 1 of a gate; they stem from one source and may share a logit.

    Attributes:
        source: The operation that produced the gated channels.
        start: First unit.
        stop: One past the last unit.
    """

    source: str
    start: int
    stop: int


@dataclass(frozen=True)
class GateSpec:
    """A gate: its name, which is its first layer's or choice's, and what its units are.

    Attributes:
        name: Its name.
        units: Number of its units.
        groups: Their groups; none in a categorical gate.
        options: For a gate on operations their names, one a unit.
    """

    name: str
    units: int
    groups: tuple[Group, ...]
    options: tuple[str, ...] = ()

    @property
    def exclusive(self) -> bool:
        """Whether exactly one unit is open."""
        return not self.groups


class Gates(nn.Module):
    """All gates of a supernet; U units in all, in the order of ``specs``.

    Args:
        specs: The gates, categorical ones last.
        granularity: How units share logits.
        initial_drop: Drop probability of every unit at the start, in (0, 1).
    """

    group_of_unit: Tensor
    choice_of_option: Tensor
    closed: Tensor

    def __init__(self, specs: Sequence[GateSpec], *, granularity: Granularity, initial_drop: float) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.granularity = granularity
        self.sizes: dict[str, int] = {spec.name: spec.units for spec in self.specs}
        assert len(self.sizes) == len(self.specs), "every gate has a name of its own"
        lengths = torch.tensor([g.stop - g.start for spec in self.specs for g in spec.groups], dtype=torch.long)
        self.register_buffer("group_of_unit", torch.repeat_interleave(lengths), persistent=False)
        options = torch.tensor([spec.units for spec in self.specs if spec.exclusive], dtype=torch.long)
        self.register_buffer("choice_of_option", torch.repeat_interleave(options), persistent=False)
        self.choices_count = len(options)
        total = int(lengths.sum()) + int(options.sum())
        self.register_buffer("closed", torch.zeros(total, dtype=torch.bool), persistent=False)
        keep = 1 - initial_drop
        both = {"group": (None, keep), "product": (keep**0.5, keep**0.5)}
        own, group = both.get(granularity, (keep, None))
        self._any_closed = False
        units, groups = len(self.group_of_unit), len(lengths)
        self.unit_logits = nn.Parameter(torch.full((units,), logit(own))) if own is not None else None
        self.group_logits = nn.Parameter(torch.full((groups,), logit(group))) if group is not None else None
        self.choice_logits = nn.Parameter(torch.zeros(len(self.choice_of_option))) if len(options) else None

    @property
    def units(self) -> int:
        """U, the number of binary variables, the options of choices included."""
        return len(self.closed)

    @property
    def free(self) -> int:
        """Number of the units that are independent of each other; the options of choices follow them."""
        return len(self.group_of_unit)

    def choices(self) -> Choices | None:
        """The categorical part of the posterior, over the last U - ``free`` units; None if there is none."""
        if self.choice_logits is None:
            return None
        return Choices(self.choice_logits, self.choice_of_option, self.choices_count)

    def choice_of_unit(self) -> Tensor | None:
        """The choice that each unit is an option of, -1 for independent units, (U,); None if there are no choices."""
        if self.choice_logits is None:
            return None
        return torch.cat([torch.full_like(self.group_of_unit, -1), self.choice_of_option])

    def first_units(self) -> dict[str, int]:
        """Each gate's first unit among all U."""
        starts = accumulate(self.sizes.values(), initial=0)
        return dict(zip(self.sizes, starts, strict=False))

    def logits(self) -> Tensor:
        """Logit of every unit's keep probability, shape (U,); :data:`CLOSED` where it is closed for good."""
        logits, choices = self._own_logits(), self.choices()
        if choices is not None:
            logits = torch.cat([logits, choices.keep_logits()])
        return torch.where(self.closed, CLOSED, logits) if self._any_closed else logits

    def _own_logits(self) -> Tensor:
        if self.group_logits is None:
            return cast(Tensor, self.unit_logits)
        shared = self.group_logits[self.group_of_unit]
        return shared if self.unit_logits is None else product_logits(self.unit_logits, shared)

    def close_(self, units: Tensor) -> None:
        """Close units for good: their keep probability is 0, whatever becomes of their logits.

        Args:
            units: Which, bool (U,), beside those closed already; with one logit a group whole groups. The options of
                a choice are never closed for good.

        Raises:
            ModelError: They are part of a group that has one logit.
        """
        closed = self.closed | units.to(self.closed.device)
        closed[self.free :] = False  # an option that is hardly ever chosen may still be the only one left
        if self.unit_logits is None and not torch.equal(
            self._whole_groups(closed)[self.group_of_unit], closed[: self.free]
        ):
            raise ModelError(
                "units to close", "must be whole groups where a group has one logit", remedy="close all of a group"
            )
        self.closed.copy_(closed)
        self._any_closed = bool(closed.any())

    def natural(self) -> Tensor:
        """What a prior's cost shifts, (U,): :meth:`logits`, and of an option its own logit in its choice's softmax."""
        if self.choice_logits is None:
            return self.logits()
        return torch.cat([self.logits()[: self.free], self.choice_logits])

    def logits_of(self, natural: Tensor) -> Tensor:
        """The :meth:`logits` that belong to other values of :meth:`natural`, (U,)."""
        if self.choice_logits is None:
            return natural
        options = Choices(natural[self.free :], self.choice_of_option, self.choices_count)
        return torch.cat([natural[: self.free], options.keep_logits()])

    @torch.no_grad()
    def set_natural_(self, natural: Tensor) -> None:
        """The inverse of :meth:`natural`; units that share a logit must agree."""
        own = natural[: self.free]
        if self.choice_logits is not None:
            self.choice_logits.copy_(natural[self.free :])
        if self.unit_logits is not None:
            self.unit_logits.copy_(own)
            if self.group_logits is not None:  # open: their product with a unit's is the unit's
                self.group_logits.fill_(-CLOSED)
        elif self.group_logits is not None:
            self.group_logits[self.group_of_unit] = own.to(self.group_logits)

    def shared(self, values: Tensor) -> Tensor:
        """Values (U,) of units, each replaced by the mean of those that share its logit."""
        if self.unit_logits is not None:
            return values
        groups = values.new_zeros(int(self.group_of_unit.max()) + 1 if self.free else 0)
        sums = groups.index_add(0, self.group_of_unit, values[: self.free])
        counts = groups.index_add(0, self.group_of_unit, torch.ones_like(values[: self.free]))
        return torch.cat([(sums / counts)[self.group_of_unit], values[self.free :]])

    @torch.no_grad()
    def settle_(self) -> None:
        """Write :data:`CLOSED` into the logits of the units closed for good, so that their state alone says so."""
        if self.unit_logits is not None:
            self.unit_logits.masked_fill_(self.closed[: self.free], CLOSED)
        elif self.group_logits is not None:
            self.group_logits.masked_fill_(self._whole_groups(self.closed), CLOSED)
        self.closed.fill_(False)
        self._any_closed = False

    def narrow_(self, architecture: Architecture) -> None:
        """Close for good, by their logits, the units that an architecture does not keep.

        Where a group has one logit it is closed if none of its units is kept. The options of a choice stay.

        Args:
            architecture: It is what can still be kept.

        Raises:
            ArchitectureError: It belongs to another search space.
        """
        closed = ~self.mask(architecture)
        if self.unit_logits is None and self.group_logits is not None:
            closed[: self.free] = self._whole_groups(closed)[self.group_of_unit]
        self.close_(closed)
        self.settle_()

    @torch.no_grad()
    def open_(self, logit: float) -> None:
        """Set the logits of all units but a choice's options to ``logit``, where they are not closed for good."""
        for parameter in (self.unit_logits, self.group_logits):
            if parameter is not None:
                parameter.masked_fill_(~closed_for_good(parameter), logit)

    def _whole_groups(self, units: Tensor) -> Tensor:
        """Whether all units of each group are among ``units``, (G,)."""
        groups = int(self.group_of_unit.max()) + 1 if len(self.group_of_unit) else 0
        others = torch.zeros(groups, dtype=torch.long, device=units.device)
        return others.index_add(0, self.group_of_unit, (~units[: self.free]).long()) == 0

    def kl_context(self, data_size: float, *, weight_sq: Tensor | None, expected_cost: Tensor | None) -> KLContext:
        """What a prior looks at; ``weight_sq`` (U,) and ``expected_cost`` only where the prior needs them."""
        free, choices = self.free, self.choices()
        return KLContext(
            logits=self.logits()[:free],
            data_size=data_size,
            weight_sq=None if weight_sq is None else weight_sq[:free],
            expected_cost=expected_cost,
            choices=choices,
            option_weight_sq=None if weight_sq is None or choices is None else weight_sq[free:],
        )

    def rsample(self, noise: Tensor, temperature: float) -> Tensor:
        """Relaxed samples, (..., U), from uniform noise of that shape; differentiable in the logits."""
        choices, logits = self.choices(), self.logits()
        if choices is None:
            return rsample(logits, noise, temperature)
        independent = rsample(logits[: self.free], noise[..., : self.free], temperature)
        return torch.cat([independent, choices.rsample(noise[..., self.free :], temperature)], -1)

    @torch.no_grad()
    def sample(self, *, generator: torch.Generator | None = None) -> Tensor:
        """A hard sample, bool (U,), on the CPU."""
        choices, logits = self.choices(), self.logits().cpu()
        independent = sample(logits[: self.free], generator=generator)
        return independent if choices is None else torch.cat([independent, choices.sample(generator=generator).cpu()])

    @torch.no_grad()
    def mode(self) -> Tensor:
        """The most probable units, bool (U,)."""
        choices, kept = self.choices(), self.logits()[: self.free] >= 0
        return kept if choices is None else torch.cat([kept, choices.mode()])

    @torch.no_grad()
    def log_prob(self, kept: Tensor) -> float:
        """Log probability in nats of the units ``kept``, bool (U,); -inf if a choice has none or two options open."""
        kept, choices, logits = kept.to(self.closed.device), self.choices(), self.logits()
        signs = torch.where(kept, 1.0, -1.0)
        total = logsigmoid(signs * logits)[: self.free].sum()
        if choices is None:
            return float(total)
        opened = kept[self.free :]
        number = torch.zeros(self.choices_count, dtype=torch.long, device=kept.device)
        if not (number.index_add(0, self.choice_of_option, opened.long()) == 1).all():
            return -math.inf
        return float(total + choices.log_probs()[opened].sum())

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Split (..., U) into each gate's (..., units)."""
        parts = torch.split(values, [spec.units for spec in self.specs], dim=-1)
        return {spec.name: part for spec, part in zip(self.specs, parts, strict=True)}

    def architecture(self, kept: Tensor) -> Architecture:
        """The architecture that keeps the units where ``kept`` (U,) is true."""
        parts = self.split(kept.detach().cpu())
        return Architecture(self.sizes, {name: tuple(part.nonzero()[:, 0].tolist()) for name, part in parts.items()})

    def mask(self, architecture: Architecture) -> Tensor:
        """The kept units of an architecture, shape (U,), bool.

        Raises:
            ArchitectureError: It belongs to another search space.
        """
        architecture.require_space(self.sizes)
        mask = torch.zeros(self.units, dtype=torch.bool)
        kept = [start + unit for name, start in self.first_units().items() for unit in architecture.kept[name]]
        mask[torch.tensor(kept, dtype=torch.long)] = True
        return mask.to(self.group_of_unit.device)

    @torch.no_grad()
    def clamp_(self, bound: float) -> None:
        """Keep every logit within [-bound, bound], where its sigmoid still has a gradient, unless closed for good."""
        for parameter in self.parameters():
            parameter.copy_(torch.where(closed_for_good(parameter), parameter, parameter.clamp(-bound, bound)))

    def fix_(self, keep: float) -> None:
        """As :meth:`fill_`, for good: the logits take no gradient; ``keep`` 1 opens every gate for certain."""
        if keep < 1:
            self.fill_(keep)
        else:
            for parameter in self.parameters():
                nn.init.constant_(parameter, _CERTAIN)
        self.requires_grad_(False)

    @torch.no_grad()
    def fill_(self, keep: float) -> None:
        """Set the keep probability of every unit but a choice's options to ``keep``, in (0, 1)."""
        shared = self.granularity == "product"
        for parameter in (self.unit_logits, self.group_logits):
            if parameter is not None:
                parameter.fill_(logit(keep**0.5 if shared else keep))


def apply_gate(x: Tensor, mask: Tensor, axis: int) -> Tensor:
    """Multiply the channels of x by a mask: x (B, ..., C at ``axis``, ...), mask (B or 1, C).

    The first axis of x may also be a multiple of B (frames of a video): each example's rows see the same mask.
    """
    if mask.shape[0] not in (1, x.shape[0]):
        mask = mask.repeat_interleave(x.shape[0] // mask.shape[0], 0)
    shape = [1] * x.ndim
    shape[0], shape[axis] = mask.shape[0], mask.shape[1]
    return x * mask.reshape(shape).to(x.dtype)
