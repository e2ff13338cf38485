"""Probabilities of unions of joint gate events, many at once.

A *row* is the event "every common unit is open, and (the row is certain, or some term has all its units open)" over
gate units that are independent, or options of a choice of which one is open. `compile_unions` brings plain lists of
terms into that form once, so that a gradient step is a handful of `index_add` calls.
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
        exclusive: Which terms exclude each other; None: none do.
    """

    certain: Tensor
    common_row: Tensor
    common_unit: Tensor
    terms: Terms
    exclusive: Exclusive | None = None

    def probability(self, keep_logits: Tensor) -> Tensor:
        """Probability of each row, shape (R,), if units are open independently with sigmoid(keep_logits (U,)).

        Terms of one row that still share units are treated as independent; without such, it is exact.
        """
        log_open = logsigmoid(keep_logits)
        rows = keep_logits.new_zeros(self.certain.numel())
        common = rows.index_add(0, self.common_row, log_open[self.common_unit])
        term = keep_logits.new_zeros(self.terms.row.numel())
        term = term.index_add(0, self.terms.entry_term, log_open[self.terms.entry_unit])
        if self.exclusive is None:
            none_open = rows.index_add(0, self.terms.row, log1mexp(term))
        else:
            none_open = rows.index_add(0, self.exclusive.row, log1mexp(self.exclusive.log_any(term)))
        return common.exp() * torch.where(self.certain, torch.ones_like(rows), -torch.expm1(none_open))

    @property
    def exact(self) -> bool:
        """Whether the terms of every row have disjoint units, those aside that exclude each other."""
        if self.exclusive is not None:
            return self.exclusive.exact
        *_, count = unique_pairs(self.terms.row[self.terms.entry_term], self.terms.entry_unit)
        return bool((count == 1).all())


@dataclass(frozen=True, eq=False)
class Exclusive:
    """Terms in clusters: those of one cluster have different options of one choice, so that their sum counts.

    Attributes:
        row: Row of each cluster, shape (G,).
        cluster: Cluster of each term, shape (T,).
        exact: Whether no two clusters of a row depend on one variable, and all terms of a cluster exclude each other.
    """

    row: Tensor
    cluster: Tensor
    exact: bool

    def log_any(self, term: Tensor) -> Tensor:
        """Log probability (G,) that one of a cluster's terms is open, from those of the terms (T,)."""
        sums = term.new_zeros(self.row.numel()).index_add(0, self.cluster, term.exp())
        return sums.clamp(min=torch.finfo(term.dtype).tiny).log()


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, to full relative precision at both ends, with finite gradients."""
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -math.log(2.0)
    # log1p must not see the x near 0 that it is not used for: 0 * inf in the backward pass would be NaN.
    far = torch.where(near, torch.full_like(x, -1.0), x)
    return torch.where(near, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(far)))


def compile_unions(terms: Terms, certain: Tensor, choice: Tensor | None = None) -> Unions:
    """Bring rows of terms into the form of `Unions`, removing every dependence that can be removed exactly.

    * A term that contains another one of its row adds nothing (z_u or z_u z_v = z_u): dropped, as are repeats.
    * Units that are in all terms of a row are taken out of the union.

    Args:
        terms: The terms of all rows.
        certain: Rows that happen whatever their terms say, shape (R,) bool.
        choice: The choice that each unit is an option of, -1 for independent units, shape (U,); None: all are.
    """
    terms = terms.keep(~certain[terms.row])
    if choice is not None:
        terms = terms.keep(~_impossible(terms, choice))
    terms = terms.keep(~_absorbed(terms))
    row, unit, which, count = unique_pairs(terms.row[terms.entry_term], terms.entry_unit)
    is_common = count == torch.bincount(terms.row, minlength=certain.numel())[row]
    terms = terms.without(is_common[which])
    certain = certain.index_fill(0, terms.row[terms.sizes() == 0], True)
    terms = terms.keep(~certain[terms.row])
    exclusive = None if choice is None else _clusters(terms, choice)
    return Unions(certain, row[is_common], unit[is_common], terms, exclusive)


def _impossible(terms: Terms, choice: Tensor) -> Tensor:
    """Terms (T,) that need two options of one choice."""
    option = choice[terms.entry_unit] >= 0
    term, _, _, count = unique_pairs(terms.entry_term[option], choice[terms.entry_unit[option]])
    return torch.zeros_like(terms.row, dtype=torch.bool).index_fill(0, term[count > 1], True)


def _clusters(terms: Terms, choice: Tensor) -> Exclusive:
    """The terms of a row that have an option of one choice, together; every other term by itself."""
    choices, count = int(choice.max()) + 1, terms.row.numel()
    own = choices + torch.arange(count, device=terms.row.device)
    entry_choice = choice[terms.entry_unit]
    option = entry_choice >= 0
    first = own.scatter_reduce(0, terms.entry_term[option], entry_choice[option], "amin")
    row, key, cluster, _ = unique_pairs(terms.row, first)
    of_cluster = entry_choice == key[cluster[terms.entry_term]]
    *_, alike = unique_pairs(cluster[terms.entry_term[of_cluster]], terms.entry_unit[of_cluster])
    variable = torch.where(option, entry_choice, choices + terms.entry_unit)
    _, _, which, _ = unique_pairs(terms.row[terms.entry_term], variable)
    pair, _, _, _ = unique_pairs(which, cluster[terms.entry_term])
    *_, clusters = torch.unique(pair, return_counts=True)
    return Exclusive(row, cluster, bool((alike == 1).all() and (clusters == 1).all()))


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
