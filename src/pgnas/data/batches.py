"""Batches of one split: shuffled, augmented and normalised, the same for the same (seed, epoch, step)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pgnas.data.augmentation import Augmentation
from pgnas.data.dataset import Preprocessing, Split
from pgnas.errors import DataError
from pgnas.seeds import derive_seed


class Batches:
    """An iterable of (x, y): x (n, C, H, W) float32 normalised, y (n,) int64, both on ``device``.

        batches = Batches(data.train, data.preprocessing, 128, augmentation=data.augmentation, shuffle=True, seed=1)
        for epoch in range(epochs):
            batches.set_epoch(epoch)
            for x, y in batches:
                ...

    The order of an epoch depends on (seed, epoch) alone, the augmentation of a step on (seed, epoch, step) alone: a
    resumed run draws what it would have drawn, and W ranks together see what one process would have seen.

    Args:
        split: What to iterate over.
        preprocessing: How to normalise it.
        batch_size: Images a step, over all ranks together; a multiple of ``world_size``.
        device: Where x and y go; they travel as uint8.
        augmentation: ``None``: none. Applied to uint8 images; a cutout is filled with the training mean.
        shuffle: A new order every epoch; otherwise the order of the split.
        seed: Seed of order and augmentation.
        drop_last: Leave out a smaller last batch. A split smaller than a batch still gives one: the whole split, up
            to a multiple of ``world_size``.
        rank: This process takes images ``rank``, ``rank + world_size``, ... of every batch.
        world_size: Number of processes. Without ``drop_last`` the shares of the last batch may differ by one image,
            and be empty, so that every rank makes the same number of steps.

    Raises:
        DataError: The split is empty, or a size breaks its rule.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        augmentation: Augmentation | None = None,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check_sizes(len(split), batch_size, rank, world_size)
        self._split = split
        self._preprocessing = preprocessing
        self._device = torch.device(device)
        self._augmentation = None if augmentation is None or augmentation.is_identity else augmentation
        self._shuffle = shuffle
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._epoch = 0
        self._batch_size = batch_size
        self._used = len(split)  # images an epoch
        if drop_last:
            self._batch_size = min(batch_size, len(split) // world_size * world_size)
            self._used = len(split) // self._batch_size * self._batch_size
        self._fill = (torch.tensor(preprocessing.mean) * 255).round()

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Steps an epoch."""
        return -(-self._used // self._batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self._epoch  # set_epoch during an iteration is about the next one
        for step, batch in enumerate(torch.split(self._order(epoch)[: self._used], self._batch_size)):
            mine = self._split.take(batch[self._rank :: self._world_size].to(self._split.images.device))
            images = self._augmented(mine.images, epoch, step, len(batch)).to(self._device, non_blocking=True)
            yield self._preprocessing.normalise(images), mine.labels.to(self._device, non_blocking=True)

    def _order(self, epoch: int) -> Tensor:
        """(N,) int64: the indices in the order of this epoch."""
        if not self._shuffle:
            return torch.arange(len(self._split))
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
        return torch.randperm(len(self._split), generator=generator)

    def _augmented(self, images: Tensor, epoch: int, step: int, global_count: int) -> Tensor:
        if self._augmentation is None:
            return images
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "augmentation", epoch, step))
        height, width = images.shape[2:]
        # drawn for the whole batch, so that an image's noise does not depend on the number of ranks
        draws = self._augmentation.draw(global_count, height, width, generator=generator)
        return self._augmentation.apply(images, draws.share(self._rank, self._world_size), fill=self._fill)


def _check_sizes(count: int, batch_size: int, rank: int, world_size: int) -> None:
    if world_size < 1 or not 0 <= rank < world_size:
        raise DataError("rank", "must lie in 0..world_size - 1", value=f"{rank} of {world_size}", remedy="check it")
    if count < world_size:
        raise DataError(
            "split", "must hold at least one image a process", value=f"{count} for {world_size}", remedy="add images"
        )
    if batch_size < 1 or batch_size % world_size:
        raise DataError(
            "batch size",
            f"must be a positive multiple of the number of processes ({world_size})",
            value=batch_size,
            remedy=f"choose {max(1, batch_size // world_size) * world_size}",
        )
