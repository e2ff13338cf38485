"""Stratified splits that depend on the seed and the labels alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pgnas.errors import DataError
from pgnas.seeds import derive_seed

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1
_LEAST_WITH_TEST = 3  # one image a class in each of train, select and estimate
_LEAST_WITHOUT_TEST = 4  # ... and in test


@dataclass(frozen=True, eq=False)
class SplitIndices:
    """Which images go where: sorted (n,) int64 indices, disjoint, together all.

    Attributes:
        train: What remains of each class.
        select: Half of the validation images.
        estimate: The other half.
        test: Empty if the source has a test split of its own.
    """

    train: Tensor
    select: Tensor
    estimate: Tensor
    test: Tensor


def split_indices(labels: Tensor, class_names: Sequence[str], *, cut_test: bool, data_seed: int) -> SplitIndices:
    """Cut validation, in two halves, and if need be test from the images of a source.

    Of every class first 20 % go to test (with ``cut_test``; at least 1 image), then 10 % of the rest to validation (at
    least 2 images, so that both halves know every class). An odd image goes to the halves in turn.

    The order within a class comes from a hash, not from a generator of torch or numpy: their streams may change with
    their versions, and a split must not.

    Args:
        labels: (N,) int64, in 0..len(class_names) - 1.
        class_names: For the error message.
        cut_test: Whether the source has no test split of its own.
        data_seed: The only seed that matters here.

    Raises:
        DataError: A class has fewer than 3 images, 4 with ``cut_test``.
    """
    least = _LEAST_WITHOUT_TEST if cut_test else _LEAST_WITH_TEST
    parts: dict[str, list[Tensor]] = {"train": [], "select": [], "estimate": [], "test": []}
    odd_to_select = True
    for label, name in enumerate(class_names):
        members = (labels == label).nonzero().flatten()
        count = len(members)
        if count < least:
            remedy = "add images or remove the class"
            rule = f"needs at least {least} images to be split into train, validation and test"
            raise DataError(f"class {name!r}", rule, value=count, remedy=remedy)
        test = max(1, round(TEST_SHARE * count)) if cut_test else 0
        validation = max(2, round(VALIDATION_SHARE * (count - test)))
        select = validation // 2
        if validation % 2:
            select, odd_to_select = select + odd_to_select, not odd_to_select
        sizes = [test, select, validation - select, count - test - validation]
        shuffled = members[_shuffle(count, label, data_seed)]
        for part, chosen in zip(("test", "select", "estimate", "train"), torch.split(shuffled, sizes), strict=True):
            parts[part].append(chosen)
    return SplitIndices(**{part: torch.cat(chosen).sort().values for part, chosen in parts.items()})


def halves(labels: Tensor, class_count: int, data_seed: int) -> tuple[Tensor, Tensor]:
    """Cut a source's own validation examples into select and estimate, class by class.

    Args:
        labels: (N,) int64, in 0..class_count - 1.
        class_count: Number of classes.
        data_seed: As of ``split_indices``.

    Returns:
        Sorted (n,) int64 indices, disjoint, together all; an odd example of a class goes to the halves in turn.

    Raises:
        DataError: There are fewer than two.
    """
    if len(labels) < 2:
        remedy = "add validation images or remove their folder"
        raise DataError("validation", "needs at least 2 images, for two halves", value=len(labels), remedy=remedy)
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    odd_to_select = True
    for label in range(class_count):
        members = (labels == label).nonzero().flatten()
        shuffled = members[_shuffle(len(members), label, data_seed)]
        cut = len(members) // 2
        if len(members) % 2:
            cut, odd_to_select = cut + odd_to_select, not odd_to_select
        parts[0].append(shuffled[:cut])
        parts[1].append(shuffled[cut:])
    return torch.cat(parts[0]).sort().values, torch.cat(parts[1]).sort().values


def _shuffle(count: int, label: int, data_seed: int) -> Tensor:
    order = sorted(range(count), key=lambda i: derive_seed(data_seed, "split", label, i))
    return torch.tensor(order, dtype=torch.int64)
