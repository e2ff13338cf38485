"""Expected cost of a random network: E_q[kept inputs x needed outputs], layer by layer, as a function of the gates.

The cost is a *declared surrogate* for parameters or MACs; a hard cap is checked on the extracted network.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pgnas.bayes._unions import Terms, Unions, compile_unions, join, tensors_to, unique_pairs
from pgnas.errors import InputError


@dataclass(frozen=True, eq=False, kw_only=True)
class BilinearCost:
    """Cost sum_l layer_weight_l * (kept inputs of l) * (needed outputs of l) + output_weight_l * (needed outputs of l).

    The random variables are U independent gate *units*. A *slot* is one gated channel as one consumer reads it, and
    is open if all of its units are (one unit usually; a joint slot has several, such as a channel and the operation
    that it enters). A slot with a layer is one of that layer's inputs; a slot without one (layer -1) only reads. An
    *output* is one channel that a layer produces; it is needed if some slot that reads it is open.

    `expected` is exact if no output is read by slots that share units in part. Shared units that cancel do not
    matter: repeated slots, a slot that contains another one, and units common to all readers of an output are
    resolved exactly (z^2 = z); so are units that an input and an output of one layer have in common (residual
    streams). What is left is treated as independent, and `exact` is then False.

    A gate on a whole operation belongs in the slots that read its layers' outputs (with layer -1 if the channels are
    counted without it), not in their input slots: it closes the outputs, and the cost with them.

    Attributes:
        units: U.
        slot_layer: Layer of each slot, or -1, shape (S,) long.
        entry_slot: Slot of each (slot, unit) entry, shape (E,) long. A slot without entries is always open.
        entry_unit: Unit of each entry, shape (E,) long.
        fixed_inputs: Number of always-kept inputs of each layer, shape (L,).
        output_layer: Layer that produces each output, shape (P,) long.
        output_always: Outputs needed whatever the gates say, shape (P,) bool.
        reader_output: Output of each (output, slot) reading, shape (R,) long.
        reader_slot: Slot of each reading, shape (R,) long.
        layer_weight: Cost of one (input, output) pair of each layer, shape (L,) floating.
        output_weight: Cost of one output of each layer (bias, BatchNorm), shape (L,) floating.
        choice: The choice that each unit is an option of, -1 for an independent unit, shape (U,) long; None: all are
            independent. Exactly one option of a choice is open: E[z_a z_b] = 0. Options may not be in input slots.

    Raises:
        InputError: If shapes, dtypes or indices do not fit together.
    """

    units: int
    slot_layer: Tensor
    entry_slot: Tensor
    entry_unit: Tensor
    fixed_inputs: Tensor
    output_layer: Tensor
    output_always: Tensor
    reader_output: Tensor
    reader_slot: Tensor
    layer_weight: Tensor
    output_weight: Tensor
    choice: Tensor | None = None
    _plan: _Plan = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self)
        object.__setattr__(self, "_plan", _compile(self))

    def expected(self, keep_logits: Tensor) -> Tensor:
        """E_q[cost] if unit u is open with probability sigmoid(keep_logits[u]), independently but for choices.

        Args:
            keep_logits: Shape (U,), floating.

        Returns:
            Differentiable scalar of the dtype of ``keep_logits``, in the units of the weights.
        """
        if keep_logits.shape != (self.units,):
            raise _misfit("keep_logits", f"must have shape ({self.units},)", tuple(keep_logits.shape))
        plan = self._plan
        kept = plan.inputs.probability(keep_logits)
        needed = plan.outputs.probability(keep_logits)
        given = plan.given.probability(keep_logits)
        layers = keep_logits.new_zeros(self.layer_weight.numel())
        inputs = (layers + self.fixed_inputs).index_add(0, plan.input_layer, kept)
        outputs = layers.index_add(0, self.output_layer, needed)
        # E[z_s n_c] = P(s) P(c | s), not P(s) P(c), for the pairs that share units.
        tied = kept[plan.pair_input] * (given - needed[plan.pair_output])
        pairs = (inputs * outputs).index_add(0, self.output_layer[plan.pair_output], tied)
        return (self.layer_weight.to(layers) * pairs + self.output_weight.to(layers) * outputs).sum()

    @torch.no_grad()
    def count(self, kept: Tensor) -> float:
        """Cost of one architecture: ``kept`` (U,) bool says which units are open."""
        if kept.shape != (self.units,) or kept.dtype != torch.bool:
            raise _misfit("kept", f"must be bool of shape ({self.units},)", f"{kept.dtype} {tuple(kept.shape)}")
        closed = torch.zeros_like(self.slot_layer).index_add(0, self.entry_slot, (~kept[self.entry_unit]).long())
        is_open = (closed == 0).long()
        readers = torch.zeros_like(self.output_layer).index_add(0, self.reader_output, is_open[self.reader_slot])
        needed = (self.output_always | (readers > 0)).long()
        layers = torch.zeros(self.layer_weight.numel(), dtype=torch.long, device=kept.device)
        is_input = self.slot_layer >= 0
        inputs = layers.index_add(0, self.slot_layer[is_input], is_open[is_input]) + self.fixed_inputs
        outputs = layers.index_add(0, self.output_layer, needed)
        weights = zip(self.layer_weight.tolist(), self.output_weight.tolist(), strict=True)
        numbers = zip(weights, inputs.tolist(), outputs.tolist(), strict=True)
        return float(sum(per_pair * i * o + per_output * o for (per_pair, per_output), i, o in numbers))

    @property
    def full(self) -> float:
        """Cost with every unit open."""
        return self.count(torch.ones(self.units, dtype=torch.bool, device=self.slot_layer.device))

    @property
    def exact(self) -> bool:
        """Whether `expected` is the exact mean of `count`, not one that takes overlapping readers as independent."""
        return self._plan.outputs.exact and self._plan.given.exact

    def to(self, device: torch.device | str) -> BilinearCost:
        """The same cost with all tensors on ``device``."""
        return tensors_to(self, device)


@dataclass(frozen=True, eq=False)
class _Plan:
    """Compiled events: input slots (I,), outputs (P,), and outputs given an input slot that shares units (Q,)."""

    inputs: Unions
    input_layer: Tensor
    outputs: Unions
    given: Unions
    pair_input: Tensor
    pair_output: Tensor


def _compile(cost: BilinearCost) -> _Plan:
    entry_slot, entry_unit, _, _ = unique_pairs(cost.entry_slot, cost.entry_unit)
    slots = Terms(torch.arange(cost.slot_layer.numel(), device=entry_slot.device), entry_slot, entry_unit)
    # A stream is read by many layers through the same units: one reader of each kind is enough.
    reader_output, reader_slot, _, _ = unique_pairs(cost.reader_output, _first_alike(slots)[cost.reader_slot])
    term, entry = join(reader_slot, slots.entry_term)
    reads = Terms(reader_output, term, slots.entry_unit[entry])
    reads = reads.keep(~cost.output_always[reads.row])
    outputs = compile_unions(reads, cost.output_always, cost.choice)

    is_input = cost.slot_layer >= 0
    inputs = slots.keep(is_input)
    input_layer = cost.slot_layer[is_input]
    inputs = Terms(torch.arange(input_layer.numel(), device=entry_slot.device), inputs.entry_term, inputs.entry_unit)
    inputs = inputs.without(_implied(cost, outputs, inputs, input_layer))

    pair_input, pair_output = _pairs(cost, inputs, input_layer, reads)
    given = _given(cost, inputs, reads, pair_input, pair_output)
    none = torch.zeros(input_layer.numel(), dtype=torch.bool, device=entry_slot.device)
    return _Plan(compile_unions(inputs, none), input_layer, outputs, given, pair_input, pair_output)


def _first_alike(slots: Terms) -> Tensor:
    """The first slot with the same units, for each slot (S,)."""
    size, entry = slots.sizes(), torch.arange(slots.entry_unit.numel(), device=slots.row.device)
    place = entry - (torch.cumsum(size, 0) - size)[slots.entry_term]
    kind = torch.zeros_like(size)
    for k in range(int(place.max()) + 1 if place.numel() else 0):  # one turn per unit of the largest slot
        here = place == k
        unit = torch.zeros_like(size).index_put((slots.entry_term[here],), slots.entry_unit[here] + 1)
        *_, kind, _ = unique_pairs(kind, unit)
    order = torch.argsort(kind, stable=True)
    count = torch.bincount(kind)
    return order[(torch.cumsum(count, 0) - count)[kind]]


def _implied(cost: BilinearCost, outputs: Unions, inputs: Terms, input_layer: Tensor) -> Tensor:
    """Entries of inputs whose unit every needed output of the layer has anyway, so that it need not be asked twice.

    A gate on a whole operation would otherwise tie every input of its layers to every output.
    """
    possible = outputs.certain.clone()
    possible[outputs.terms.row] = True
    alive = torch.bincount(cost.output_layer[possible], minlength=cost.layer_weight.numel())
    keys = cost.output_layer[outputs.common_row] * cost.units + outputs.common_unit
    keys, count = torch.unique(keys, return_counts=True)
    everywhere = keys[count == alive[torch.div(keys, max(cost.units, 1), rounding_mode="floor")]]
    return torch.isin(input_layer[inputs.entry_term] * cost.units + inputs.entry_unit, everywhere)


def _pairs(cost: BilinearCost, inputs: Terms, input_layer: Tensor, reads: Terms) -> tuple[Tensor, Tensor]:
    """Every (input, output) of one layer that have a unit in common."""
    of_input = input_layer[inputs.entry_term] * cost.units + inputs.entry_unit
    entry_output = reads.row[reads.entry_term]
    i, j = join(of_input, cost.output_layer[entry_output] * cost.units + reads.entry_unit)
    pair_input, pair_output, _, _ = unique_pairs(inputs.entry_term[i], entry_output[j])
    return pair_input, pair_output


def _given(cost: BilinearCost, inputs: Terms, reads: Terms, pair_input: Tensor, pair_output: Tensor) -> Unions:
    """The event that an output is needed, given that an input is open, for each pair: its units are taken as open."""
    pair, read = join(pair_output, reads.row)
    term, entry = join(read, reads.entry_term)
    unit = reads.entry_unit[entry]
    opened = torch.isin(pair_input[pair[term]] * cost.units + unit, inputs.entry_term * cost.units + inputs.entry_unit)
    never = torch.zeros_like(pair_output, dtype=torch.bool)
    return compile_unions(Terms(pair, term, unit).without(opened), never, cost.choice)


def _check(cost: BilinearCost) -> None:
    layers, slots, outputs = cost.layer_weight.numel(), cost.slot_layer.numel(), cost.output_layer.numel()
    for name, low, high in (
        ("slot_layer", -1, layers),
        ("entry_slot", 0, slots),
        ("entry_unit", 0, cost.units),
        ("output_layer", 0, layers),
        ("reader_output", 0, outputs),
        ("reader_slot", 0, slots),
    ):
        index: Tensor = getattr(cost, name)
        if index.dtype != torch.long or index.dim() != 1:
            raise _misfit(name, "must be a 1-d long tensor", f"{index.dtype} {tuple(index.shape)}")
        if index.numel() and not low <= int(index.min()) <= int(index.max()) < high:
            raise _misfit(name, f"must be in [{low}, {high})", f"{int(index.min())}..{int(index.max())}")
    for name, like in (
        ("entry_unit", cost.entry_slot),
        ("reader_slot", cost.reader_output),
        ("output_always", cost.output_layer),
        ("fixed_inputs", cost.layer_weight),
        ("output_weight", cost.layer_weight),
    ):
        if getattr(cost, name).shape != like.shape:
            raise _misfit(name, f"must have shape {tuple(like.shape)}", tuple(getattr(cost, name).shape))
    if cost.choice is not None:
        _check_choice(cost, cost.choice)
    if cost.output_always.dtype != torch.bool:
        raise _misfit("output_always", "must be bool", cost.output_always.dtype)


def _check_choice(cost: BilinearCost, choice: Tensor) -> None:
    if choice.shape != (cost.units,) or choice.dtype != torch.long:
        raise _misfit("choice", f"must be long of shape ({cost.units},)", f"{choice.dtype} {tuple(choice.shape)}")
    if ((cost.slot_layer[cost.entry_slot] >= 0) & (choice[cost.entry_unit] >= 0)).any():
        raise _misfit("choice", "must name no unit of an input slot", "an option in one")


def _misfit(name: str, rule: str, value: object) -> InputError:
    return InputError(f"BilinearCost {name}", rule, value=value, remedy="see the shapes in BilinearCost's docstring")
