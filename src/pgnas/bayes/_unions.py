"""Probabilities of unions of joint gate events, many at once.

A *row* is the event "every common unit is open, and (the row is certain, or some term has all its units open)" over
independent gate units. `compile_unions` brings plain lists of terms into that form once, so that a gradient step is
a handful of `index_add` calls.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Terms:
    """Conjunctions of units, each belonging to a row: term t is open if all its units are (always, if it has none).

    Attributes:
        row: Row of each term, shape (T,).
        entry_term: Term of each entry, shape (E,); (term, unit) pairs are distinct.
        entry_unit: Unit of each entry, shape (E,).
    """

    row: Tensor
    entry_term: Tensor
    entry_unit: Tensor

    def keep(self, mask: Tensor) -> Terms:
        """The terms where ``mask`` (T,) is True, renumbered."""
        number = torch.cumsum(mask, 0) - 1
        entries = mask[self.entry_term]
        return Terms(self.row[mask], number[self.entry_term[entries]], self.entry_unit[entries])

    def without(self, mask: Tensor) -> Terms:
        """The same terms without the entries where ``mask`` (E,) is True."""
        return Terms(self.row, self.entry_term[~mask], self.entry_unit[~mask])

    def sizes(self) -> Tensor:
        """Number of units of each term, shape (T,)."""
        return torch.bincount(self.entry_term, minlength=self.row.numel())


@dataclass(frozen=True, eq=False)
class Unions:
    """R events in compiled form.

    Attributes:
        certain: Whether a row needs its common units only, shape (R,) bool.
        common_row: Row of each common unit, shape (C,).
        common_unit: Common units, shape (C,).
        terms: What is left: at least one of a row's terms must be open. A row that is not certain and has no terms
            never happens.
    """

    certain: Tensor
    common_row: Tensor
    common_unit: Tensor
    terms: Terms

    def probability(self, keep_logits: Tensor) -> Tensor:
        """Probability of each row, shape (R,), if units are open independently with sigmoid(keep_logits (U,)).

        Terms of one row that still share units are treated as independent; without such, it is exact.
        """
        log_open = logsigmoid(keep_logits)
        rows = keep_logits.new_zeros(self.certain.numel())
        common = rows.index_add(0, self.common_row, log_open[self.common_unit])
        term = keep_logits.new_zeros(self.terms.row.numel())
        term = term.index_add(0, self.terms.entry_term, log_open[self.terms.entry_unit])
        none_open = rows.index_add(0, self.terms.row, log1mexp(term))
        return common.exp() * torch.where(self.certain, torch.ones_like(rows), -torch.expm1(none_open))

    @property
    def exact(self) -> bool:
        """Whether the terms of every row have disjoint units."""
        *_, count = unique_pairs(self.terms.row[self.terms.entry_term], self.terms.entry_unit)
        return bool((count == 1).all())


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, to full relative precision at both ends, with finite gradients."""
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -math.log(2.0)
    # log1p must not see the x near 0 that it is not used for: 0 * inf in the backward pass would be NaN.
    far = torch.where(near, torch.full_like(x, -1.0), x)
    return torch.where(near, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(far)))


def compile_unions(terms: Terms, certain: Tensor) -> Unions:
    """Bring rows of terms into the form of `Unions`, removing every dependence that can be removed exactly.

    * A term that contains another one of its row adds nothing (z_u or z_u z_v = z_u): dropped, as are repeats.
    * Units that are in all terms of a row are taken out of the union.

    Args:
        terms: The terms of all rows.
        certain: Rows that happen whatever their terms say, shape (R,) bool.
    """
    terms = terms.keep(~certain[terms.row])
    terms = terms.keep(~_absorbed(terms))
    row, unit, which, count = unique_pairs(terms.row[terms.entry_term], terms.entry_unit)
    is_common = count == torch.bincount(terms.row, minlength=certain.numel())[row]
    terms = terms.without(is_common[which])
    certain = certain.index_fill(0, terms.row[terms.sizes() == 0], True)
    return Unions(certain, row[is_common], unit[is_common], terms.keep(~certain[terms.row]))


def join(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs (i, j) with left[i] == right[j], of two 1-d integer tensors."""
    order = torch.argsort(right, stable=True)
    ordered = right[order]
    left = left.contiguous()
    first = torch.searchsorted(ordered, left)
    count = torch.searchsorted(ordered, left, right=True) - first
    i = torch.repeat_interleave(torch.arange(left.numel(), device=left.device), count)
    within = torch.arange(i.numel(), device=left.device) - (torch.cumsum(count, 0) - count)[i]
    return i, order[first[i] + within]


def unique_pairs(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distinct (first, second) in lexicographic order, where each given pair is among them, and how often.

    Args:
        first: Integers >= 0, shape (N,).
        second: Integers >= 0, shape (N,).

    Returns:
        First and second of the distinct pairs, shape (M,); index into them, shape (N,); count, shape (M,).
    """
    # One integer a pair: torch.unique(dim=...) is two orders of magnitude slower.
    width = int(second.max()) + 1 if second.numel() else 1
    key, which, count = torch.unique(first * width + second, return_inverse=True, return_counts=True)
    return torch.div(key, width, rounding_mode="floor"), key % width, which, count


def tensors_to(value: T, device: torch.device | str) -> T:
    """A dataclass with its tensors, and those of the dataclasses in it, on ``device``."""
    moved = object.__new__(type(value))
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        item = getattr(value, field.name)
        if isinstance(item, Tensor):
            item = item.to(device)
        elif dataclasses.is_dataclass(item):
            item = tensors_to(item, device)
        object.__setattr__(moved, field.name, item)
    return moved


def _absorbed(terms: Terms) -> Tensor:
    """Terms (T,) that contain another term of their row; of equal ones all but the first."""
    absorbed = torch.zeros_like(terms.row, dtype=torch.bool)
    *_, pair, _ = unique_pairs(terms.row[terms.entry_term], terms.entry_unit)
    i, j = join(pair, pair)
    a, b, _, shared = unique_pairs(terms.entry_term[i], terms.entry_term[j])
    size = terms.sizes()
    inside = (shared == size[a]) & ((size[a] < size[b]) | (a < b))
    absorbed[b[inside]] = True
    return absorbed
