"""Labelled examples, whether they are in memory or read when they are asked for, and one pass over them.

Shapes: N examples, C channels, D slices or frames, H rows, W columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol, Self

import torch
from torch import Tensor

from pgnas.data.augmentation import Augmentation
from pgnas.data.preprocessing import Preprocessing
from pgnas.data.volumes import VolumeAugmentation
from pgnas.errors import DataError
from pgnas.seeds import derive_seed

_PIXELS_HASHED = 32  # of every example


class AnyAugmentation(Protocol):
    """What training examples go through."""

    @property
    def is_identity(self) -> bool:
        """Whether examples come out as they went in."""


@dataclass(frozen=True, eq=False)
class Step:
    """One process's part of one batch.

    Attributes:
        number: Position of the batch in its epoch.
        indices: (n,) int64, the examples of this process, in their order; may be empty.
        count: Examples of the batch over all processes.
    """

    number: int
    indices: Tensor
    count: int


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass over a split, as ``Batches`` plans it.

    Attributes:
        steps: The batches, in their order.
        augmentation: ``None``: none.
        seed: Seed of the augmentation.
        epoch: Of this pass.
        rank: This process has examples ``rank``, ``rank + world_size``, ... of every batch.
        world_size: Number of processes.
        fill: (C,) values of a hole, in 0..255.
        pin: Hand out page-locked memory, from which a GPU copies in the background.
        workers: Processes that decode, of a split that is read from disk; ``None``: chosen.
    """

    steps: Sequence[Step]
    augmentation: AnyAugmentation | None
    seed: int
    epoch: int
    rank: int
    world_size: int
    fill: Tensor
    pin: bool
    workers: int | None


class Examples(ABC):
    """Labelled examples of one shape.

    Attributes:
        labels: (N,) int64, in 0..number of classes - 1.
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(C, H, W), or (C, D, H, W) of volumes and clips."""

    @abstractmethod
    def take(self, indices: Tensor) -> Self:
        """The examples at ``indices``, (M,) int64."""

    @abstractmethod
    def read_often(self) -> Self:
        """The same examples, to be kept in memory as far as there is enough."""

    @abstractmethod
    def head(self, count: int) -> Tensor:
        """The first ``count`` examples without augmentation, (count, C, [D,] H, W) uint8."""

    @abstractmethod
    def widened(self, channels: int) -> Self:
        """Grey examples as ``channels`` equal channels."""

    @abstractmethod
    def read(self, plan: Pass) -> Iterator[tuple[Tensor, Tensor]]:
        """For each step of ``plan`` the examples, (n, C, [D,] H, W) uint8, and their labels, (n,) int64, on the CPU."""

    @abstractmethod
    def measured(self) -> Preprocessing:
        """Shape, mean and standard deviation of these examples."""

    @abstractmethod
    def hashed(self) -> Iterator[bytes]:
        """Bytes by which these examples differ from others, for a fingerprint."""


@dataclass(frozen=True, eq=False)
class Split(Examples):
    """Examples in memory.

    Attributes:
        images: (N, C, H, W) uint8, or volumes (N, C, D, H, W).
        labels: (N,) int64, in 0..number of classes - 1.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        good = images.dtype == torch.uint8 and images.ndim in (4, 5)
        if not good or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            found = f"{images.dtype} {tuple(images.shape)} and {labels.dtype} {tuple(labels.shape)}"
            rule = "needs images (N, C, H, W) or volumes (N, C, D, H, W), uint8, and labels (N,) int64"
            raise DataError("split", rule, value=found, remedy="convert them first")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W), or (C, D, H, W) of volumes."""
        return tuple(self.images.shape[1:])

    def take(self, indices: Tensor) -> Split:
        """The examples at ``indices``, (M,) int64, as a copy."""
        return Split(self.images[indices], self.labels[indices])

    def read_often(self) -> Split:
        """The same: they are in memory."""
        return self

    def head(self, count: int) -> Tensor:
        """The first ``count`` examples, (count, C, [D,] H, W) uint8."""
        return self.images[:count]

    def widened(self, channels: int) -> Split:
        """Grey examples as ``channels`` equal channels; a view."""
        return Split(self.images.expand(-1, channels, *self.images.shape[2:]), self.labels)

    def read(self, plan: Pass) -> Iterator[tuple[Tensor, Tensor]]:
        """The steps of ``plan``; the augmentation of a step depends on (seed, epoch, step) alone.

        Raises:
            DataError: The augmentation is not one of whole batches.
        """
        augmentation = plan.augmentation
        if augmentation is not None and not isinstance(augmentation, Augmentation | VolumeAugmentation):
            rule, remedy = "must be Augmentation or VolumeAugmentation for examples in memory", "use one of these"
            raise DataError("augmentation", rule, value=type(augmentation).__name__, remedy=remedy)
        for step in plan.steps:
            mine = self.take(step.indices.to(self.images.device))
            images = mine.images if augmentation is None else _augmented(mine.images, augmentation, step, plan)
            yield (images.pin_memory(), mine.labels.pin_memory()) if plan.pin else (images, mine.labels)

    def measured(self) -> Preprocessing:
        """Shape, mean and standard deviation of these examples, exactly."""
        return Preprocessing.of(self.images)

    def hashed(self) -> Iterator[bytes]:
        """The shape, all labels, and some 32 or more pixels of every example."""
        # odd, so that successive images of even size give different pixels
        stride = max(1, self.images[:1].numel() // _PIXELS_HASHED) | 1
        yield repr(tuple(self.images.shape)).encode()
        yield self.labels.cpu().numpy().tobytes()
        yield self.images.reshape(-1)[::stride].cpu().numpy().tobytes()


def _augmented(images: Tensor, augmentation: Augmentation | VolumeAugmentation, step: Step, plan: Pass) -> Tensor:
    seed = derive_seed(plan.seed, "augmentation", plan.epoch, step.number)
    generator = torch.Generator().manual_seed(seed)
    return augmentation.of_batch(
        images, count=step.count, start=plan.rank, step=plan.world_size, generator=generator, fill=plan.fill
    )


def fingerprint_of(class_names: Iterable[str], splits: Iterable[Examples]) -> str:
    """SHA-256 of the class names and of what tells each split from others; see ``Examples.hashed``."""
    digest = sha256(repr(tuple(class_names)).encode())
    for split in splits:
        for part in split.hashed():
            digest.update(part)
    return digest.hexdigest()
