from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnas.data import Augmentation, Batches, Preprocessing, Split

AUGMENTATION = Augmentation(crop=2, flip=True, cutout=3)


def numbered(count: int) -> Split:
    """Random images whose labels are their positions."""
    images = torch.randint(0, 256, (count, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(count))


def batches(split: Split, batch_size: int, **options) -> Batches:
    return Batches(split, Preprocessing.of(split.images), batch_size, **options)


def labels(of: Batches) -> list[int]:
    return [label for _, y in of for label in y.tolist()]


def test_without_options_the_split_comes_in_order_and_normalised():
    split = numbered(10)
    x, y = (torch.cat(part) for part in zip(*batches(split, 4), strict=True))
    assert torch.equal(y, split.labels)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 15), st.booleans(), st.booleans(), st.integers(0, 5))
def test_an_epoch_has_every_image_once_but_for_the_dropped(count, batch_size, shuffle, drop_last, epoch):
    iterable = batches(numbered(count), batch_size, shuffle=shuffle, drop_last=drop_last)
    iterable.set_epoch(epoch)
    sizes = [len(y) for _, y in iterable]
    seen = labels(iterable)
    assert len(set(seen)) == len(seen) == sum(sizes)
    assert len(sizes) == len(iterable) >= 1
    if not drop_last:
        assert len(seen) == count
    elif count < batch_size:
        assert sizes == [count]
    else:
        assert sizes == [batch_size] * (count // batch_size)


def test_a_resumed_run_draws_what_it_would_have_drawn():
    def run(epochs: range) -> list[tuple[torch.Tensor, torch.Tensor]]:
        iterable = batches(numbered(20), 6, augmentation=AUGMENTATION, shuffle=True, seed=3)
        drawn = []
        for epoch in epochs:
            iterable.set_epoch(epoch)
            drawn += list(iterable)
        return drawn

    whole, resumed = run(range(4)), run(range(2, 4))
    for (x, y), (x_again, y_again) in zip(whole[8:], resumed, strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)


def test_epochs_steps_and_seeds_differ():
    constant = Split(numbered(1).images.repeat(32, 1, 1, 1), torch.arange(32))

    def drawn(seed: int, epoch: int) -> list[torch.Tensor]:
        iterable = batches(constant, 16, augmentation=AUGMENTATION, seed=seed)
        iterable.set_epoch(epoch)
        return [x for x, _ in iterable]

    first, second = drawn(0, 0)
    assert not torch.equal(first, second)
    assert not torch.equal(first, drawn(1, 0)[0])
    assert not torch.equal(first, drawn(0, 1)[0])
    shuffled = batches(numbered(32), 16, shuffle=True)
    order = labels(shuffled)
    assert order == labels(shuffled)
    shuffled.set_epoch(1)
    assert order != labels(shuffled)


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 40), st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_ranks_partition_what_one_process_sees(count, world_size, share, drop_last):
    split, options = numbered(count), {"augmentation": AUGMENTATION, "shuffle": True, "seed": 1, "drop_last": drop_last}
    ranks = [
        list(batches(split, share * world_size, rank=rank, world_size=world_size, **options))
        for rank in range(world_size)
    ]
    assert len({len(steps) for steps in ranks}) == 1
    for parts in zip(*ranks, strict=True):
        sizes = [len(y) for _, y in parts]
        assert max(sizes) - min(sizes) <= (0 if drop_last else 1)
    if count >= share * world_size or not drop_last:
        for (x, y), *parts in zip(batches(split, share * world_size, **options), *ranks, strict=True):
            for rank, (part_x, part_y) in enumerate(parts):
                assert torch.equal(part_x, x[rank::world_size])
                assert torch.equal(part_y, y[rank::world_size])


def test_neither_the_split_nor_the_global_generator_changes():
    split = numbered(8)
    before, state = split.images.clone(), torch.get_rng_state()
    list(batches(split, 4, augmentation=AUGMENTATION, shuffle=True))
    assert torch.equal(split.images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_hole_is_nearly_zero_after_normalisation():
    split = numbered(50)
    (x, _), *_ = batches(split, 50, augmentation=Augmentation(cutout=40))
    assert x.abs().max() < 0.01


@pytest.mark.parametrize(
    ("count", "batch_size", "rank", "world_size"),
    [(0, 4, 0, 1), (4, 0, 0, 1), (4, 3, 0, 2), (1, 2, 0, 2), (4, 4, 2, 2)],
)
def test_sizes_that_break_a_rule_are_refused(complaint, count, batch_size, rank, world_size):
    split = numbered(8)
    cut = Split(split.images[:count], split.labels[:count])
    preprocessing = Preprocessing.of(split.images)
    complaint(lambda: Batches(cut, preprocessing, batch_size, rank=rank, world_size=world_size))
