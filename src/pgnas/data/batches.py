"""Batches of one split: shuffled, augmented and normalised, the same for the same (seed, epoch, step)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pgnas.data.preprocessing import Preprocessing
from pgnas.data.splits import AnyAugmentation, Examples, Pass, Step
from pgnas.errors import DataError
from pgnas.seeds import derive_seed


class Batches:
    """An iterable of (x, y): x (n, C, [D,] H, W) float32 normalised, y (n,) int64, both on ``device``.

        batches = Batches(data.train, data.preprocessing, 128, augmentation=data.augmentation, shuffle=True, seed=1)
        for epoch in range(epochs):
            batches.set_epoch(epoch)
            for x, y in batches:
                ...

    The order of an epoch depends on (seed, epoch) alone, the augmentation on (seed, epoch) and the step (examples in
    memory) or the example (examples read from disk) alone: a resumed run draws what it would have drawn, and W ranks
    together see what one process would have seen, however many processes decode.

    Args:
        split: What to iterate over.
        preprocessing: How to normalise it.
        batch_size: Examples a step, over all ranks together; a multiple of ``world_size``.
        device: Where x and y go; they travel as uint8, to a GPU in the background.
        augmentation: ``None``: none. Applied to uint8 examples; a cutout is filled with the training mean.
        shuffle: A new order every epoch; otherwise the order of the split.
        seed: Seed of order and augmentation.
        drop_last: Leave out a smaller last batch. A split smaller than a batch still gives one: the whole split, up
            to a multiple of ``world_size``.
        rank: This process takes examples ``rank``, ``rank + world_size``, ... of every batch.
        world_size: Number of processes. Without ``drop_last`` the shares of the last batch may differ by one example,
            and be empty, so that every rank makes the same number of steps.
        workers: Processes that decode a split that is read from disk; 0: none but this; ``None``: chosen, see
            ``pgnas.data.streaming``. Without influence on what comes out.

    Raises:
        DataError: The split is empty, or a size breaks its rule.
    """

    def __init__(
        self,
        split: Examples,
        preprocessing: Preprocessing,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        augmentation: AnyAugmentation | None = None,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
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
        self._workers = workers
        self._epoch, self._first = 0, 0
        self._batch_size = batch_size
        self._used = len(split)  # examples an epoch
        if drop_last:
            self._batch_size = min(batch_size, len(split) // world_size * world_size)
            self._used = len(split) // self._batch_size * self._batch_size
        self._fill = (torch.tensor(preprocessing.mean) * 255).round()

    def set_epoch(self, epoch: int, *, first_step: int = 0) -> None:
        """Make the next iterations those of ``epoch``, without its steps before ``first_step``: they are not read."""
        self._epoch, self._first = epoch, first_step

    def __len__(self) -> int:
        """Steps a whole epoch."""
        return -(-self._used // self._batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.every(1, first=self._first)

    def every(self, stride: int, *, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches ``first``, ``first + stride``, ... of the epoch; those between are not read."""
        plan = self._plan(self._epoch, slice(first, None, stride))  # set_epoch from now on is about the next iteration
        return self._read(plan)

    def _read(self, plan: Pass) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._split.read(plan):
            on_device = images.to(self._device, non_blocking=True)
            yield self._preprocessing.normalise(on_device), labels.to(self._device, non_blocking=True)

    def _plan(self, epoch: int, wanted: slice) -> Pass:
        parts = torch.split(self._order(epoch)[: self._used], self._batch_size)
        return Pass(
            steps=[Step(number, part[self._rank :: self._world_size], len(part)) for number, part in enumerate(parts)][
                wanted
            ],
            augmentation=self._augmentation,
            seed=self._seed,
            epoch=epoch,
            rank=self._rank,
            world_size=self._world_size,
            fill=self._fill,
            pin=self._device.type == "cuda",
            workers=self._workers,
        )

    def _order(self, epoch: int) -> Tensor:
        """(N,) int64: the indices in the order of this epoch."""
        if not self._shuffle:
            return torch.arange(len(self._split))
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
        return torch.randperm(len(self._split), generator=generator)


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
