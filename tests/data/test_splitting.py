from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnas.data.splitting import split_indices

COUNTS = st.lists(st.integers(4, 130), min_size=2, max_size=6)


def labels_of(counts: list[int], order_seed: int) -> torch.Tensor:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(order_seed))]


@settings(max_examples=50, deadline=None)
@given(COUNTS, st.booleans(), st.integers(0, 2**32 - 1))
def test_splits_are_a_stratified_partition(counts, cut_test, data_seed):
    labels = labels_of(counts, 0)
    splits = split_indices(labels, [str(i) for i in range(len(counts))], cut_test=cut_test, data_seed=data_seed)
    parts = (splits.train, splits.select, splits.estimate, splits.test)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(labels)))
    spare = 0
    for label, count in enumerate(counts):
        train, select, estimate, test = (int((labels[part] == label).sum()) for part in parts)
        assert test == (max(1, round(0.2 * count)) if cut_test else 0)
        assert select + estimate == max(2, round(0.1 * (count - test)))
        assert train >= 1
        spare += select - estimate
        assert spare in (0, 1)  # odd images go to the two halves in turn


def test_splits_depend_on_the_data_seed_and_on_no_other_generator():
    labels = labels_of([40, 50], 0)

    def train(data_seed: int) -> list[int]:
        return split_indices(labels, ["a", "b"], cut_test=True, data_seed=data_seed).train.tolist()

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert train(0) == first != train(1)


@pytest.mark.parametrize(("cut_test", "least"), [(True, 4), (False, 3)])
def test_a_class_too_small_to_be_split_is_named(complaint, cut_test, least):
    def split(count: int) -> object:
        return split_indices(labels_of([9, count], 0), ["cat", "dog"], cut_test=cut_test, data_seed=0)

    split(least)
    assert f"class 'dog' needs at least {least} images" in complaint(lambda: split(least - 1))
